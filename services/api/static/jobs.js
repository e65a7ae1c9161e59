"use strict";
const rows = document.querySelector("#jobs tbody");
const trouble = document.getElementById("trouble");

function cell(row, content, className) {
  const td = row.insertCell();
  if (content instanceof Node) td.append(content); else td.textContent = content;
  if (className) td.className = className;
}

async function refresh() {
  try {
    const answer = await fetch(document.body.dataset.root + "/v1/jobs?limit=100");
    if (answer.status === 401) { location.reload(); return; }
    const page = await answer.json();
    if (!answer.ok) throw new Error(page.detail);
    rows.replaceChildren();
    document.getElementById("empty").hidden = page.items.length > 0;
    for (const job of page.items) {
      const row = rows.insertRow();
      const link = document.createElement("a");
      link.href = job.links.page;
      link.textContent = job.id;
      cell(row, link);
      cell(row, job.name);
      cell(row, job.state + (job.waiting || job.reason ? " (" + (job.waiting || job.reason) + ")" : ""), job.state);
      cell(row, job.step + " / " + job.steps);
      cell(row, job.attempt);
      cell(row, new Date(job.created_at * 1000).toLocaleString());
    }
    trouble.hidden = true;
  } catch (error) {
    trouble.textContent = "No answer from the service: " + error.message;
    trouble.hidden = false;
  }
}

refresh();
setInterval(refresh, 3000);
