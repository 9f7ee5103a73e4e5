// Drag and drop: each file goes up by tus, and goes on where it was when the line breaks or the page is
// opened again and the same file is dropped.
"use strict";

const list = document.getElementById("uploads");
const drop = document.getElementById("drop");
const version = { "Tus-Resumable": "1.0.0" };
const encode = (s) => btoa(String.fromCharCode(...new TextEncoder().encode(s)));
const wait = (ms) => new Promise((go) => setTimeout(go, ms));

// What an upload is remembered by on this machine.
const memory = (file) => `upload ${file.name} ${file.size} ${file.lastModified}`;

function row(file) {
  const item = document.createElement("li");
  const bar = document.createElement("progress");
  const note = document.createElement("span");
  bar.max = file.size;
  item.append(file.name, bar, note);
  list.append(item);
  return {
    at: (n, text) => { bar.value = n; note.textContent = text || `${Math.round((100 * n) / file.size)} %`; },
    done: (slide) => { item.dataset.state = "done"; note.replaceChildren(Object.assign(document.createElement("a"), { href: "/slides/" + slide, textContent: "show" })); bar.value = file.size; },
    failed: (text) => { item.dataset.state = "failed"; note.setAttribute("role", "alert"); note.textContent = text; },
  };
}

async function problem(response) {
  const p = await response.json().catch(() => ({}));
  return `${p.detail || response.statusText}${p.hint ? ` (${p.hint})` : ""}`;
}

async function begin(file) {
  const answer = await fetch("/v1/uploads", { method: "POST", headers: { ...version, "Upload-Length": file.size, "Upload-Metadata": "filename " + encode(file.name) } });
  if (!answer.ok) throw new Error(await problem(answer));
  localStorage.setItem(memory(file), answer.headers.get("Location"));
  return answer.headers.get("Location");
}

// send is one PATCH from offset on; it ends early when the line does.
function send(file, place, offset, show) {
  return new Promise((settle) => {
    const request = new XMLHttpRequest(); // fetch says nothing of progress
    request.open("PATCH", place);
    for (const [name, value] of Object.entries({ ...version, "Content-Type": "application/offset+octet-stream", "Upload-Offset": offset })) request.setRequestHeader(name, value);
    request.upload.onprogress = (e) => show(offset + e.loaded);
    request.onloadend = () => settle(request);
    request.send(file.slice(offset));
  });
}

async function upload(file) {
  const show = row(file);
  try {
    let place = localStorage.getItem(memory(file));
    for (let pause = 500; ; ) {
      if (!place) place = await begin(file);
      const head = await fetch(place, { method: "HEAD" }).catch(() => null);
      if (head && head.status === 404) { localStorage.removeItem(memory(file)); place = null; continue; }
      if (head && head.ok) {
        const offset = Number(head.headers.get("Upload-Offset"));
        show.at(offset);
        if (offset === file.size) {
          const made = await fetch(place + "/finish", { method: "POST" });
          if (!made.ok && made.status < 500 && made.status !== 409) throw new Error(await problem(made));
          if (made.ok) { localStorage.removeItem(memory(file)); return show.done((await made.json()).id); }
        } else {
          const sent = await send(file, place, offset, (n) => show.at(n));
          if (sent.status >= 400 && ![408, 409, 423, 429, 499].includes(sent.status) && sent.status < 500) {
            localStorage.removeItem(memory(file));
            throw new Error((JSON.parse(sent.responseText || "{}").detail) || sent.statusText);
          }
          if (sent.status === 204) { pause = 500; continue; }
        }
      }
      show.at(0, "the line is broken; trying again");
      await wait(pause);
      pause = Math.min(2 * pause, 10000);
    }
  } catch (error) {
    show.failed(error.message);
  }
}

if (drop) {
  const files = drop.querySelector("input");
  files.addEventListener("change", () => [...files.files].forEach(upload));
  for (const name of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(name, (e) => {
      e.preventDefault();
      drop.classList.toggle("over", name === "dragover");
      if (name === "drop") [...e.dataTransfer.files].forEach(upload);
    });
  }
}
