"""THE PAGE: one post-training run, everything it does, in the order it does it.

1. A group arrives scored; it carries the PolicyVersion that really sampled it.
2. Policy lag is exact: step n trains on samples of version max(0, n - 1 - policy_lag), and on no others.
3. Scores arrive raw, with their validity. An invalid score earns nothing and counts in no statistic.
4. Every rank runs this page in step; rank 0 publishes, writes and emits.
5. What is random is derived from the job, so a run that was killed and resumed ends in the same adapter.
"""

from __future__ import annotations

from learner.outcome import TrainResult
from learner.run import Run


def train(run: Run) -> TrainResult:
    """Train from the latest checkpoint to the last step.

    Raises NonFiniteError, RewardError, GuardError, RolloutError, CheckpointError, DeadlineExceeded; Fenced when a newer
    attempt owns the job. All of them leave the run folder as the last checkpoint has it.
    """
    job = run.job
    start = run.restore()  # weights, optimizer, and the versions that the next samples need
    run.republish()  # before the first rollout: a broken path fails here
    if start == 0:
        run.evaluate(0)

    for step in range(start + 1, job.steps + 1):
        run.judge_rewards(step)  # on the canaries, when it is time
        groups = run.take(step)
        credit = run.credit(step, groups)
        metrics = run.update(step, groups, credit)
        run.publish(step)
        run.record(step, groups, {**credit.metrics, **metrics})

        if step == job.steps or step % job.checkpoint.every == 0:
            run.save(step)
        if step < job.steps and job.evaluate.every and step % job.evaluate.every == 0:
            run.evaluate(step)

    run.evaluate(job.steps)
    return run.finish()
