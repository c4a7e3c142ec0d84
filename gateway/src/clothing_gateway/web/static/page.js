"use strict";
// The page of the gateway: photos in, bars out. It asks POST /classify, one request a photo, as any client would.

const AT_ONCE = 3;          // requests under way; the gateway may be small, and the rest waits here
const FIRST_CLASSES = 5;    // bars shown before "All classes"
const LONGEST_WAIT = 30;    // seconds between two tries while the model is away
const SMALL = 2 ** 20;      // bytes; a photo below that is hardly too large for anyone
const here = new URL(".", location.href);
const $ = (id) => document.getElementById(id);

const waiting = [];         // cards not asked for yet
let asked = 0, done = 0, failed = 0, running = 0;
let key = "";

// ---- the ways in ----

$("pick").addEventListener("click", () => $("files").click());
$("shoot").addEventListener("click", () => $("camera").click());
const touched = matchMedia("(pointer: coarse)").matches;
$("shoot").hidden = !touched;
$("desk").hidden = touched;
for (const id of ["files", "camera"]) {
  $(id).addEventListener("change", (event) => { addFiles(event.target.files); event.target.value = ""; });
}
$("link").addEventListener("submit", (event) => {
  event.preventDefault();
  addLink($("url").value.trim());
  $("url").value = "";
});
addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  const text = event.clipboardData.getData("text/plain").trim();
  if (files.length) addFiles(files);
  else if (event.target instanceof HTMLInputElement) return;   // text pasted into a field is for the field
  else if (/^https?:\/\/\S+$/.test(text)) addLink(text);
  else say("What was pasted is neither a photo nor a link to one.");
});
for (const kind of ["dragenter", "dragover"]) {
  addEventListener(kind, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
}
for (const kind of ["dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    if (kind === "drop" || !event.relatedTarget) $("drop").classList.remove("over");
  });
}
addEventListener("drop", (event) => {
  event.preventDefault();
  const text = event.dataTransfer.getData("text/uri-list") || event.dataTransfer.getData("text/plain");
  const link = text.split("\n").find((line) => /^https?:/.test(line));
  if (event.dataTransfer.files.length) addFiles(event.dataTransfer.files);
  else if (link) addLink(link.trim());
  else say("What was dropped is neither a photo nor a link to one.");
});
$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value;
  $("access").hidden = true;
  for (const again of document.querySelectorAll(".locked .again")) again.click();
});

function addFiles(files) {
  for (const file of files) add({ name: file.name || "photo", file });
}

function addLink(url) {
  add({ name: url, url });
}

// ---- a card for each photo ----

function add(photo) {
  const card = $("card").content.cloneNode(true).firstElementChild;
  card.photo = photo;
  card.querySelector(".name").textContent = photo.name;
  const picture = card.querySelector(".picture");
  if (photo.file) {
    const image = new Image();
    image.alt = "";
    image.src = URL.createObjectURL(photo.file);
    image.onerror = () => picture.replaceChildren("?");
    image.onload = () => URL.revokeObjectURL(image.src);
    picture.append(image);
  } else {
    picture.append("🔗");   // the page loads nothing from elsewhere: its policy forbids it
  }
  card.querySelector(".copy").addEventListener("click", (event) => copy(curl(photo), event.target));
  card.querySelector(".again").addEventListener("click", () => { failed--; done--; ask(card); });
  $("found").hidden = false;
  $("photos").prepend(card);
  asked++;
  ask(card);
}

function ask(card) {
  card.classList.remove("failed", "locked");
  card.setAttribute("aria-busy", "true");
  card.querySelector(".again").hidden = true;
  card.querySelector(".answer").textContent = "Waiting…";
  card.querySelector(".call code").textContent = curl(card.photo);   // anew, as there may be a key by now
  waiting.push(card);
  next();
}

function next() {
  tell();
  while (running < AT_ONCE && waiting.length) {
    running++;
    classify(waiting.shift()).finally(() => { running--; next(); });
  }
}

async function classify(card) {
  const answer = card.querySelector(".answer");
  for (let tries = 1; ; tries++) {
    answer.textContent = "Asking…";
    const { ok, passes, status, body, times, retryAfter } = await send(card.photo);
    if (ok) { show(card, body, times); break; }
    if (!passes) { fail(card, status, body); break; }
    // Nobody should have to press a button for what passes by itself.
    if (tries === 1) speak(`${card.photo.name}: ${body.detail} It is tried again until it works.`);
    const seconds = Math.min(LONGEST_WAIT, retryAfter || 2 ** Math.min(tries, 4));
    for (let left = seconds; left > 0; left--) {
      answer.textContent = `${body.detail} Trying again in ${left} s.`;
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
  card.removeAttribute("aria-busy");
  done++;
  speak(`${progress()} ${card.photo.name}: ${answer.textContent}`);
}

async function send({ file, url }) {
  const headers = { "Content-Type": file ? file.type || "application/octet-stream" : "application/json" };
  if (!/^(image\/|application\/(json|octet-stream)$)/.test(headers["Content-Type"])) {
    headers["Content-Type"] = "application/octet-stream";  // the gateway looks at the photo, not at what it is called
  }
  if (key) headers.Authorization = `Bearer ${key}`;
  const start = performance.now();
  let response, body;
  try {
    response = await fetch(new URL("classify", here), { method: "POST", headers, body: file ?? JSON.stringify({ url }) });
  } catch {
    return silence(file);
  }
  const { status } = response;
  try {
    body = await response.json();
  } catch {   // a load balancer's own words, or half an answer
    const detail = status === 413 ? "The photo is too large for what is between here and the gateway."
      : `Something between here and the gateway answered (${status}), and not the gateway.`;
    return { ok: false, passes: [502, 503, 504].includes(status), status, body: { detail } };
  }
  const times = [...(response.headers.get("Server-Timing") ?? "").matchAll(/([\w-]+);dur=([\d.]+)/g)]
    .map(([, stage, duration]) => [stage, Number(duration)]);
  times.push(["all", performance.now() - start]);
  // 503 and 429: the model is being loaded, or too many ask at once.
  const passes = status === 503 || status === 429;
  return { ok: response.ok, passes, status, body, times, retryAfter: Number(response.headers.get("Retry-After")) };
}

// What to say of a request that got no answer: the browser doesn't tell why.
async function silence(file) {
  try {
    await file?.slice(0, 1).arrayBuffer();
  } catch {
    return { ok: false, status: 0, body: { detail: "This can't be read: it is a folder, or a file that was moved or changed." } };
  }
  const reached = await fetch(new URL("ping", here), { cache: "no-store" }).then(() => true, () => false);
  if (reached && file?.size > SMALL) {
    return { ok: false, status: 0, body: { detail: "The connection was closed before the whole photo was sent: it may be too large for what is between here and the gateway." } };
  }
  const detail = reached ? "The connection was lost." : "The gateway can't be reached.";
  return { ok: false, passes: true, status: 0, body: { detail } };
}

function show(card, { model, predictions, labels }, times) {
  // Where each class has its own probability: those above the model's threshold, and there may be none.
  const held = labels ? predictions.filter(({ label }) => labels.includes(label)) : predictions.slice(0, 1);
  $("model").textContent = `Model ${model.name}, version ${model.version}`;
  $("model").hidden = false;
  card.querySelector(".answer").textContent = held.map(({ label, probability }) => `${label}, ${percent(probability)}`).join("; ")
    || `No class above ${percent(model.threshold)}`;
  // Probabilities that are no shares of one whole: each bar has a frame of its own 100 %.
  const own = model.scores === "independent" || predictions.length === 1;
  const caption = card.querySelector("caption");
  caption.textContent = own ? "Each class has its own probability; they need not sum to 100 %." : "The classes, the most probable first";
  caption.className = own ? "quiet" : "unseen";
  card.querySelector("table").classList.toggle("own", own);
  const rows = predictions.map(({ label, probability }, index) => {
    const row = document.createElement("tr");
    const name = document.createElement("th");
    name.scope = "row";
    name.textContent = label;
    const bar = document.createElement("div");
    bar.className = "bar";
    bar.style.width = `${probability * 100}%`;
    const whole = document.createElement("div");
    whole.className = "whole";
    whole.append(bar);
    row.append(name, cell(whole), cell(percent(probability)));
    row.hidden = index >= FIRST_CLASSES;
    return row;
  });
  card.querySelector("tbody").replaceChildren(...rows);
  card.querySelector("table").hidden = false;
  const more = card.querySelector(".more");
  more.hidden = rows.length <= FIRST_CLASSES;
  more.onclick = () => {
    const all = more.getAttribute("aria-expanded") === "false";
    more.setAttribute("aria-expanded", String(all));
    more.textContent = all ? `The best ${FIRST_CLASSES}` : "All classes";
    rows.forEach((row, index) => { row.hidden = !all && index >= FIRST_CLASSES; });
  };
  card.querySelector(".times").textContent = times.map(([stage, ms]) => `${stage} ${ms.toFixed(ms < 10 ? 1 : 0)} ms`).join(" · ");
}

function fail(card, status, body) {
  failed++;
  card.classList.add("failed");
  card.querySelector("table").hidden = true;
  card.querySelector(".more").hidden = true;
  card.querySelector(".answer").textContent = body.detail ?? `The gateway answered ${status}.`;
  card.querySelector(".times").textContent = body.request_id ? `${body.title} (${status}), request ${body.request_id}` : "";
  card.querySelector(".again").hidden = false;
  if (status === 401) {
    card.classList.add("locked");
    $("access").hidden = false;
    $("key").select();
  }
}

// ---- small things ----

function cell(content) {
  const made = document.createElement("td");
  made.append(content);
  return made;
}

function percent(share) {
  return share > 0 && share < 0.001 ? "< 0.1 %" : `${(share * 100).toFixed(1)} %`;
}

function curl({ file, url }) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const more = key ? " \\\n  -H \"Authorization: Bearer $KEY\"" : "";
  const address = quoted(new URL("classify", here).href);
  const name = file?.name || "photo.jpg";
  // Between double quotes curl reads , and ; as parts of a file's name, and not as its own signs.
  const part = /[,;"\\]/.test(name) ? `"${name.replace(/["\\]/g, "\\$&")}"` : name;
  return file
    ? `curl ${address} \\\n  -F ${quoted(`image=@${part}`)}${more}`
    : `curl ${address} \\\n  -H 'Content-Type: application/json' \\\n  -d ${quoted(JSON.stringify({ url }))}${more}`;
}

async function copy(text, button) {
  const said = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Select it and copy";   // not allowed where the page came by plain http
  }
  setTimeout(() => { button.textContent = said; }, 2000);
}

function say(text) {
  $("status").textContent = text;
  speak(text);
}

// For screen readers: whole sentences, once, and no seconds that are counted down.
function speak(text) {
  $("spoken").textContent = text;
}

function progress() {
  return `${done} of ${asked} done${failed ? `, ${failed} failed` : ""}.`;
}

function tell() {
  const bar = $("progress");
  bar.max = Math.max(1, asked);
  bar.value = done;
  bar.hidden = asked < 2 || done === asked;
  if (asked) $("status").textContent = progress();
}
