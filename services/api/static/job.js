"use strict";
const root = document.getElementById("job");
const base = document.body.dataset.root + "/v1/jobs/" + encodeURIComponent(root.dataset.id);
const [before, after] = root.dataset.rewardMean.split("{reward}");
const byId = (id) => document.getElementById(id);
const curves = new Map();
const phases = new Map();

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function showState(state, reason) {
  byId("state").textContent = state + (reason ? " (" + reason + ")" : "");
  byId("state").className = "state " + state;
}

function showPhase(event) {
  if (!phases.size) byId("phases").replaceChildren();
  let row = phases.get(event.phase);
  if (!row) {
    row = element("div", "phase");
    row.append(element("span", "", event.phase), document.createElement("progress"), element("span", "quiet"));
    phases.set(event.phase, row);
    byId("phases").append(row);
  }
  row.children[1].max = Math.max(1, event.total);
  row.children[1].value = event.done;
  row.children[2].textContent = event.done + " / " + event.total + (event.step ? ", step " + event.step : "") +
    (event.detail ? " " + event.detail : "");
}

function plot(place, name, step, value) {
  if (value === null || value === undefined) return;
  if (!curves.has(name)) {
    const host = byId(place);
    host.querySelector("p")?.remove();
    const box = element("div", "chart");
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 100 40");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.append(document.createElementNS("http://www.w3.org/2000/svg", "polyline"));
    box.append(element("span", "", name), element("b"), svg);
    host.append(box);
    curves.set(name, { box, points: new Map() });
  }
  const { box, points } = curves.get(name);
  points.set(step, value);
  const known = [...points.entries()].sort((a, b) => a[0] - b[0]);
  const values = known.map((point) => point[1]);
  const low = Math.min(...values), span = Math.max(...values) - low || 1;
  const last = Math.max(1, known.length - 1);
  const line = known.map((point, index) => (100 * index / last).toFixed(2) + "," + (38 - 36 * (point[1] - low) / span).toFixed(2));
  box.querySelector("polyline").setAttribute("points", line.join(" "));
  box.querySelector("b").textContent = values[values.length - 1].toPrecision(3);
}

function showStep(event) {
  byId("facts").textContent = "step " + event.step + " done";
  for (const [name, value] of Object.entries(event.metrics)) {
    if (name.startsWith(before) && name.endsWith(after)) {
      plot("rewards", name.slice(before.length, -after.length), event.step, value);
    } else if (name.startsWith("loss/")) plot("losses", name, event.step, value);
  }
}

function note(event) {
  const words = {
    state: (e) => e.state + (e.reason ? ": " + e.reason : "") + (e.attempt ? ", attempt " + e.attempt : ""),
    checkpoint: (e) => "checkpoint of step " + e.step,
    evaluation: (e) => "evaluated at step " + e.step,
    process_lost: (e) => e.process + " died: " + e.outcome,
    warning: (e) => "warning: " + e.message,
    gap: (e) => e.dropped + " older steps are not shown; the report has their curves",
    failed: (e) => "failed: " + e.message,
  }[event.type];
  if (!words) return;
  const line = element("li", event.type === "failed" ? "bad" : "", new Date(event.at * 1000).toLocaleTimeString() + "  " + words(event));
  byId("events").prepend(line);
}

function size(bytes) {
  return bytes < 1000 ? bytes + " bytes" : bytes < 1e6 ? (bytes / 1e3).toFixed(0) + " kB" : (bytes / 1e6).toFixed(1) + " MB";
}

const read = async (url) => (await fetch(url)).json();

async function showJob() {
  const job = await read(base);
  if (!job.state) return;
  showState(job.state, job.reason);
  byId("why").textContent = job.waiting || job.message;
  byId("why").className = job.waiting ? "quiet" : "bad";
  byId("departures").replaceChildren(...job.departures.map((line) => element("li", "", line)));
  byId("departs").hidden = !job.departures.length;
}

async function showResults(tries = 5) {
  byId("now").hidden = true;
  clearInterval(looking);
  const [files] = await Promise.all([read(base + "/artifacts"), showJob()]);
  // A job that failed is told as failed first, then its report is written.
  const late = !files.some((file) => file.name === "report.html") && tries > 0;
  if (late) setTimeout(() => showResults(tries - 1), 2000);
  if (!files.length) { byId("results").replaceChildren(element("p", "quiet", "This job left no files.")); return; }
  const list = element("ul");
  files.sort((a, b) => (b.name === "report.html") - (a.name === "report.html"));
  for (const file of files) {
    const item = element("li"), link = element("a", "", file.name === "report.html" ? "The report, with clips of base and tuned model" : file.name);
    link.href = base + "/artifacts/" + encodeURIComponent(file.id);
    item.append(link, element("span", "quiet", "  " + size(file.bytes)));
    if (file.media_type === "video/mp4") {
      const video = element("video");
      video.controls = true; video.preload = "none"; video.src = link.href;
      item.append(document.createElement("br"), video);
    }
    list.append(item);
  }
  byId("results").replaceChildren(list);
}

const handlers = { state: (e) => { showState(e.state, e.reason); look(); }, progress: showPhase, step: showStep };
const look = () => showJob().catch(() => undefined);
const looking = setInterval(look, 15000);
const types = ["state", "progress", "step", "checkpoint", "evaluation", "process_lost", "warning", "failed", "gap"];
let last = "";

function follow() {
  const source = new EventSource(base + "/events" + (last ? "?after=" + encodeURIComponent(last) : ""));
  for (const type of types) {
    source.addEventListener(type, (message) => {
      const event = JSON.parse(message.data);
      last = message.lastEventId || last;
      handlers[type]?.(event);
      note(event);
      byId("trouble").hidden = true;
    });
  }
  source.addEventListener("end", () => { source.close(); showResults(); });
  source.onerror = () => {
    byId("trouble").textContent = "The connection is gone; trying again.";
    byId("trouble").hidden = false;
    if (source.readyState === EventSource.CLOSED) refused();
  };
}

// After an answer that is no stream (too many of them, a store that is away, signed out) a browser does not come back.
async function refused() {
  const answer = await fetch(base).catch(() => null);
  if (answer?.status === 401) location.reload();
  else setTimeout(follow, 5000);
}

follow();
