// Draws the responses to one prompt at a time, from the JSON in #inspection.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("inspection").textContent);
  const CENTRED = { credit: 0, advantages: 0, token_reward: 0 }; // drawn around this; `value` around the baseline
  let now = data.steps[data.begin]; // the step that is shown
  const state = { prompt: 0, colour: null, kinds: new Set(data.chosen ? [data.chosen] : []) };

  function make(parent, tag, text = "", attributes = {}) {
    const made = document.createElement(tag);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (text !== "") made.textContent = text;
    parent?.appendChild(made);
    return made;
  }

  function number(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size > 0 && size < 1e-3) return value.toExponential(1).replace("e+", "e").replace("-", "−");
    return String(Number(value.toPrecision(3))).replace("-", "−");
  }

  const asked = (response) => !state.kinds.size || response.surprises.some((kind) => state.kinds.has(kind));
  const shown = (prompt) => prompt.groups.some((group) => group.responses.some(asked));
  const colourOf = (run) => (state.colour && run.colours.includes(state.colour) ? state.colour : run.first);

  function slider() {
    if (data.steps.length < 2) return;
    const label = make(document.getElementById("steps"), "label", "step");
    const input = make(label, "input", "", { type: "range", min: 0, max: data.steps.length - 1, value: data.begin });
    input.addEventListener("input", () => {
      const id = now.prompts[state.prompt]?.id;
      now = data.steps[Number(input.value)];
      state.prompt = Math.max(0, now.prompts.findIndex((prompt) => prompt.id === id));
      controls();
      draw();
    });
  }

  // What is known of the step as a whole.
  function heading() {
    const box = document.getElementById("notes"), held = now.prompts.length;
    const input = document.querySelector("#steps input");
    document.getElementById("step").textContent = `Step ${now.number}`;
    if (input) input.ariaValueText = `step ${now.number}`;
    box.replaceChildren();
    for (const note of now.notes) make(box, "p", `${note}.`);
    if (held < now.count) {
      const more = make(box, "p", `This page holds the first ${held} of ${now.count} prompts of this step; another: `);
      make(more, "code", `rlkit inspect … --step ${now.number} --prompt ID`);
    }
    document.getElementById("curves").hidden = !now.runs.some((run) => run.labels.value);
  }

  function controls() {
    const box = document.getElementById("controls"), names = [...new Set(now.runs.flatMap((run) => run.colours))];
    heading();
    box.replaceChildren();
    const label = make(box, "div");
    make(label, "label", "prompt", { for: "choose" });
    const select = make(label, "select", "", { id: "choose" });
    select.addEventListener("change", () => { state.prompt = Number(select.value); draw(); });

    if (names.length > 1) {
      const set = fieldset(box, "colour by");
      for (const name of names) {
        const run = now.runs.find((each) => each.short[name]);
        const button = make(set, "button", run.short[name], { type: "button", class: "pick", title: run.labels[name] });
        button.addEventListener("click", () => { state.colour = name; draw(); });
        button.dataset.colour = name;
      }
    }
    const set = fieldset(box, "only responses with a surprise"), absent = [];
    for (const kind in data.kinds) {
      const count = now.prompts.flatMap((p) => p.groups).flatMap((g) => g.responses).filter((r) => r.surprises.includes(kind)).reduce((sum, r) => sum + r.count, 0);
      if (count === 0) absent.push(data.kinds[kind]);
      if (count === 0 && !state.kinds.has(kind)) continue;
      const button = make(set, "button", `${data.kinds[kind]} (${count})`, { type: "button", class: "pick" });
      button.dataset.kind = kind;
      button.addEventListener("click", () => {
        if (!state.kinds.delete(kind)) state.kinds.add(kind);
        draw();
      });
    }
    if (absent.length) make(set.parentElement, "p", `none: ${absent.join("; ")}`, { class: "muted absent" });
  }

  function fieldset(box, title) {
    const set = make(box, "fieldset");
    make(set, "legend", title);
    return make(set, "div", "", { class: "buttons" });
  }

  function refresh() {
    const select = document.getElementById("choose");
    const left = now.prompts.map((prompt, i) => [prompt, i]).filter(([prompt]) => shown(prompt));
    if (!left.some(([, i]) => i === state.prompt)) state.prompt = left.length ? left[0][1] : -1;
    select.replaceChildren();
    for (const [prompt, i] of left) {
      const text = prompt.prompt.replace(/\s+/g, " ").trim();
      const again = prompt.occurrence ? ` (time ${prompt.occurrence + 1})` : "";
      make(select, "option", `${i + 1}. ${text.length > 60 ? "…" + text.slice(-60) : text}${again}`, { value: i });
    }
    select.value = String(state.prompt);
    select.disabled = !left.length;
    for (const button of document.querySelectorAll("button.pick")) {
      const on = button.dataset.kind ? state.kinds.has(button.dataset.kind) : button.dataset.colour === (state.colour ?? now.runs[0].first);
      button.setAttribute("aria-pressed", String(on));
    }
    document.getElementById("empty").hidden = left.length > 0;
  }

  function draw() {
    refresh();
    const head = document.getElementById("prompt"), runs = document.getElementById("runs");
    head.replaceChildren();
    runs.replaceChildren();
    document.getElementById("hint").hidden = state.prompt < 0;
    if (state.prompt < 0) return;
    const prompt = now.prompts[state.prompt];
    make(head, "h2", `Prompt ${prompt.id}`);
    make(head, "p", prompt.prompt, { class: "text" });
    make(head, "p", `gold ${prompt.gold}`, { class: "muted" });
    prompt.groups.forEach((group, i) => drawRun(runs, now.runs[i], group));
  }

  // What is drawn strongest, for the whole group, so that its responses can be compared.
  function scaleOf(name, group) {
    const values = group.responses.flatMap((r) => r.series[name] ?? []).filter((v) => v !== null);
    const centre = name === "value" ? group.baseline ?? 0 : CENTRED[name];
    if (centre === undefined) return { name, centre: 0, size: Math.max(...values, 0), signed: false };
    return { name, centre, size: values.reduce((most, v) => Math.max(most, Math.abs(v - centre)), 0), signed: true };
  }

  function background(scale, value) {
    if (value === null || value === undefined || scale.size === 0) return "";
    const share = Math.min(1, Math.abs(value - scale.centre) / scale.size);
    if (share < 0.02) return "";
    const colour = scale.signed ? (value > scale.centre ? "--more" : "--less") : "--size";
    return `color-mix(in srgb, var(${colour}) ${Math.round(8 + share * 72)}%, transparent)`;
  }

  function drawRun(parent, run, group) {
    const section = make(parent, "section");
    if (now.runs.length > 1) make(section, "h3", `${run.name} (${run.algorithm})`);
    make(section, "p", `baseline, the group's mean reward: ${number(group.baseline)}`, { class: "muted" });
    const name = colourOf(run);
    const scale = name ? scaleOf(name, group) : null;
    if (scale) ramp(section, run, scale);
    const values = group.responses.flatMap((r) => curve(r)).filter((v) => v !== null);
    const range = values.length ? [Math.min(...values), Math.max(...values)] : null;
    if (range && Number.isFinite(group.baseline)) {
      range[0] = Math.min(range[0], group.baseline);
      range[1] = Math.max(range[1], group.baseline);
    }
    for (const response of group.responses) if (asked(response)) drawResponse(section, run, group, response, scale, range);
  }

  function ramp(parent, run, scale) {
    const box = make(parent, "div", "", { class: "scale" });
    make(box, "span", run.labels[scale.name]);
    if (scale.size === 0) {
      make(box, "span", `${number(scale.centre)} for every token`);
      return;
    }
    const stops = [-1, -0.5, 0, 0.5, 1].slice(scale.signed ? 0 : 2);
    const colours = stops.map((share) => background(scale, scale.centre + share * scale.size) || "transparent");
    const bar = make(null, "span", "", { class: "ramp", "aria-hidden": "true" });
    bar.style.background = `linear-gradient(90deg, ${colours.join(", ")})`;
    make(box, "span", number(scale.signed ? scale.centre - scale.size : 0));
    box.appendChild(bar);
    make(box, "span", number(scale.centre + scale.size));
    if (scale.name === "value") make(box, "span", "(around the baseline)");
  }

  // V before each token, and after the last, where what it adds is known.
  function curve(response) {
    const value = response.series.value;
    if (!value) return [];
    const last = value.findLastIndex((v) => v !== null);
    const credit = response.series.credit;
    return credit && last >= 0 ? [...value.slice(0, last + 1), value[last] + credit[last]] : value;
  }

  function drawResponse(parent, run, group, response, scale, range) {
    const card = make(parent, "article", "", { class: "card response", "aria-label": `response ${response.index}` });
    const header = make(card, "header");
    make(header, "b", `${response.index}`);
    make(header, "b", response.reward === null ? "no value" : `reward ${number(response.reward)}`);
    if (response.reward !== response.clean) chip(header, `${number(response.clean)} before noise`, true);
    if (response.correct !== null) chip(header, response.correct ? "correct" : "wrong");
    if (response.status !== "ok") chip(header, response.status, true);
    if (response.truncated) chip(header, "truncated", true);
    if (!response.valid) chip(header, "left out of the loss", true);
    chip(header, `${response.ids.length} tokens`);
    const advantages = (response.series.advantages ?? []).filter((v) => v !== null);
    if (run.oneNumber && advantages.length) chip(header, `advantage ${number(advantages[0])}`);
    for (const kind of response.surprises) if (kind !== "noise") chip(header, data.kinds[kind], true);

    const parts = Object.entries(response.parts).map(([name, value]) => `${name} ${number(value)}`);
    const noted = [...parts, response.info].filter(Boolean).join(" · ");
    if (noted) make(noted.length > 60 ? card : header, "span", noted, { class: "info muted" });

    const box = make(card, "div", "", { class: "tokens", tabindex: "0", role: "group", "aria-label": `response ${response.index}: ${response.texts.join("")}` });
    const named = new Set(response.named);
    const numbers = scale && response.series[scale.name];
    response.texts.forEach((text, at) => {
      const colour = numbers ? background(scale, numbers[at]) : "";
      const span = make(box, "span", text, named.has(at) ? { class: colour ? "named marked" : "named" } : {});
      if (colour) span.style.background = colour;
    });
    // A conversation, turn by turn: what is not the model's is set apart.
    response.stretches.forEach(([start, acts, heading], i) => {
      const end = response.stretches[i + 1]?.[0] ?? response.ids.length;
      box.children[start].dataset.heading = heading;
      for (let at = start; at < end && !acts; at++) box.children[at].classList.add("context");
    });
    if (response.last) make(box, "div", response.last, { class: "context last", "data-heading": "the environment, at the end" });
    const move = range && response.series.value ? drawCurve(card, run, group, curve(response), range) : () => {};
    const details = make(card, "p", "", { class: "details muted", "aria-live": "polite" });
    let at = -1;

    function point(next) {
      if (next < 0 || next >= response.ids.length || next === at) return;
      box.children[at]?.classList.remove("at");
      at = next;
      box.children[at].classList.add("at");
      move(at);
      details.replaceChildren();
      make(details, "span", `token ${at + 1} of ${response.ids.length} `);
      make(details, "code", response.texts[at].replace(/\n/g, "⏎"));
      const said = Object.keys(response.series).map((name) => `${run.short[name]} ${number(response.series[name][at])}`);
      make(details, "span", ` id ${response.ids[at]}${said.map((each) => ` · ${each}`).join("")}`);
    }
    const over = (event) => event.target.tagName === "SPAN" && point([...box.children].indexOf(event.target));
    box.addEventListener("pointerover", over);
    box.addEventListener("click", over);
    box.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by) return;
      event.preventDefault();
      point(at < 0 ? (by > 0 ? 0 : response.ids.length - 1) : at + by);
    });
  }

  function chip(parent, text, alert = false) {
    make(parent, "span", text, { class: alert ? "chip alert" : "chip" });
  }

  function drawCurve(card, run, group, values, [low, high]) {
    const WIDTH = 1000, HEIGHT = 60;
    const box = make(card, "div", "", { class: "curve-box" });
    const there = values.filter((v) => v !== null);
    const svg = element(box, "svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    svg.setAttribute("aria-label", `${run.labels.value}: ${number(there[0])} at the first token, ${number(there.at(-1))} at the end, lowest ${number(Math.min(...there))}, highest ${number(Math.max(...there))}`);
    const x = (i) => (values.length > 1 ? (i / (values.length - 1)) * WIDTH : WIDTH / 2);
    const y = (v) => (high > low ? HEIGHT - 3 - ((v - low) / (high - low)) * (HEIGHT - 6) : HEIGHT / 2);
    if (group.baseline !== null) element(svg, "line", { x1: 0, x2: WIDTH, y1: y(group.baseline), y2: y(group.baseline) });
    let path = "", open = false;
    values.forEach((v, i) => {
      if (v !== null) path += `${open ? "L" : "M"}${x(i).toFixed(1)} ${y(v).toFixed(1)}`;
      open = v !== null;
    });
    element(svg, "path", { d: path });
    const now = element(svg, "line", { class: "now", x1: 0, x2: 0, y1: 0, y2: HEIGHT, visibility: "hidden" });
    const ends = make(box, "div", "", { class: "ends" });
    make(ends, "span", `${run.labels.value}: ${number(there[0])} to ${number(there.at(-1))}`);
    make(ends, "span", `axis ${number(low)} to ${number(high)}, dashed: baseline`);
    return (at) => {
      for (const end of ["x1", "x2"]) now.setAttribute(end, x(Math.min(at, values.length - 1)));
      now.setAttribute("visibility", "visible");
    };
  }

  function element(parent, name, attributes) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    parent.appendChild(made);
    return made;
  }

  slider();
  controls();
  draw();
})();
