"""Audio-visual synchrony: sound onsets fall on visible contacts, more than chance would have them.

Measures times of contacts (sudden changes of velocity of the coloured thing, flashes) against times of sound onsets, as
accord/world/measure.py finds them. Events are matched one to one, a pair at distance d earning exp(-d / 80 ms), so that

    f1 = 2 * (sum over the best matching) / (contacts + onsets).

Chance is the mean f1 over circular shifts of the onsets against the contacts. The value is
(f1 - chance) / (1 - chance): 1 for perfect synchrony, 0 for what unrelated sound of the same density gets, so more
events alone earn nothing.

Range [-0.25, 1], higher is better. A clip without any contact or without any onset has nothing in step: it is valid and
gets the floor, -0.25, below what misplaced sound typically gets, so falling silent or standing still never pays; the
reason says so (`no_events`, `silent_audio`). Components: `offset_s` (median over contacts of the distance to the
nearest onset, seconds), `f1`, `chance`, `num_contacts`, `num_onsets`.

Limits: one coloured thing on a dull ground and a camera at rest; sustained sound and speech have no onsets to judge;
events in the first half frame and in the last frame and a half are left out, because a change of velocity cannot be
seen there; events at even spacing match again one period later, which the chance term pays for on average only.
Known hacks: flashing and clicking in unison; the score is blind to the prompt, so train anchored rewards beside it.
Always report it with its control: the same score on sound and pictures of different clips.
"""

from __future__ import annotations

from typing_extensions import override

from accord.types import Clip, Prompt
from accord.world.measure import audio_onsets, chance_f1, median_offset_s, soft_f1, visual_contacts
from reward_servers.base import RewardModel, Score
from reward_servers.signals import mono, shrunk

SHORT_SIDE = 32
SHIFTS = 32
MOST_EVENTS = 64
"""Events beyond this number in one clip are left out; they would only cost time."""


class SyncModel(RewardModel):
    """Chance-corrected soft F1 between contacts and onsets."""

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """See the module for value and components."""
        start, stop = 0.5 / clip.fps, (len(clip.video_FHWC) - 1.5) / clip.fps
        seen = visual_contacts(shrunk(clip.video_FHWC, SHORT_SIDE), clip.fps)
        heard = audio_onsets(mono(clip.audio_CS), int(clip.sample_rate))
        seen, heard = (times[(times >= start) & (times <= stop)][:MOST_EVENTS] - start for times in (seen, heard))
        counts = {"num_contacts": float(len(seen)), "num_onsets": float(len(heard))}
        if len(seen) == 0 or len(heard) == 0:
            return self.empty("no_events", {**counts, "f1": 0.0, "chance": 0.0})
        f1 = soft_f1(seen, heard)
        chance = chance_f1(seen, heard, stop - start, SHIFTS)
        value = (f1 - chance) / max(1.0 - chance, 1e-3)
        offset = median_offset_s(seen, heard)
        return Score(max(self.spec.floor, value), {**counts, "f1": f1, "chance": chance, "offset_s": offset})
