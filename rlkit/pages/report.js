// The histograms of a step, and the browser of samples, from the JSON in #spread and #stored.
"use strict";
(() => {
  const PAGE = 12; // samples that are shown at once

  function make(parent, tag, text = "", attributes = {}) {
    const made = document.createElement(tag);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (text !== "") made.textContent = text;
    parent?.appendChild(made);
    return made;
  }

  const read = (id) => JSON.parse(document.getElementById(id)?.textContent ?? "null");
  const number = (value) => String(Number(value.toPrecision(3)));

  function field(box, title, tag, attributes = {}) {
    const label = make(box, "label", title);
    return make(label, tag, "", attributes);
  }

  function spread({ steps, histograms }) {
    const grid = document.getElementById("histograms"), box = document.getElementById("spread-step");
    const slider = field(box, "step", "input", { type: "range", min: 0, max: steps.length - 1, value: steps.length - 1 });
    const figures = histograms.map((each) => histogram(grid, each));
    function draw() {
      const at = Number(slider.value);
      slider.parentElement.firstChild.textContent = slider.ariaValueText = `step ${steps[at]}`;
      figures.forEach((figure) => figure(at));
    }
    slider.addEventListener("input", draw);
    draw();
  }

  function histogram(parent, { title, of, bins, names, counts }) {
    const figure = make(parent, "figure", "", { class: "histogram" });
    make(figure, "figcaption", title);
    if (names.length > 1) {
      const legend = make(figure, "p", "", { class: "keys" });
      names.forEach((name, i) => {
        const entry = make(legend, "span");
        make(entry, "i", "", { class: "swatch", style: `background: var(--c${i})` });
        entry.append(name);
      });
    }
    const plot = make(figure, "div", "", { class: "bins", role: "img" });
    const ends = make(figure, "div", "", { class: "ends", "aria-hidden": "true" });
    make(ends, "span", bins[0]);
    make(ends, "span", bins.at(-1));
    const said = make(figure, "p", "", { class: "muted said", "aria-live": "polite" });
    return (at) => {
      const sums = bins.map((_, bin) => counts[at].reduce((sum, each) => sum + each[bin], 0));
      const most = Math.max(...sums, 1), all = sums.reduce((a, b) => a + b, 0);
      const told = (bin) => `${bins[bin]}: ${names.map((name, i) => (names.length > 1 ? `${name} ` : "") + counts[at][i][bin]).join(", ")} of ${all} ${of}`;
      plot.replaceChildren();
      plot.setAttribute("aria-label", `${title}. ${bins.map((_, bin) => told(bin)).filter((_, bin) => sums[bin]).join("; ")}`);
      said.textContent = `${all} ${of}, at most ${most} in a bar`;
      bins.forEach((_, bin) => {
        const column = make(plot, "div");
        names.forEach((_, i) => make(column, "i", "", { style: `height: ${(100 * counts[at][i][bin]) / most}%; background: var(--c${i})` }));
        for (const type of ["pointerover", "click"]) column.addEventListener(type, () => (said.textContent = told(bin)));
      });
    };
  }

  function browse({ prompts, samples }) {
    const box = document.getElementById("filters"), list = document.getElementById("found");
    const more = document.getElementById("more"), count = document.getElementById("matches");
    const distinct = (key) => [...new Set(samples.map(key))];

    function choice(title, options) {
      const select = field(box, title, "select");
      for (const [value, text] of [["", "all"], ...options]) make(select, "option", text, { value });
      return select;
    }

    const filters = {
      step: choice("step", distinct((s) => s.step).map((step) => [step, step])),
      prompt: choice("prompt", prompts.map(([, text], i) => [i, text.replace(/\s+/g, " ").trim().slice(-60)])),
      correct: choice("verdict", [["true", "right"], ["false", "wrong"], ["null", "none"]]),
      truncated: choice("truncated", [["true", "yes"], ["false", "no"]]),
      status: choice("status", distinct((s) => s.status).map((status) => [status, status])),
    };
    const text = field(box, "text in prompt or response", "input", { type: "search" });
    let found = [];

    function filter() {
      const wanted = text.value.toLowerCase();
      found = samples.filter(
        (s) =>
          Object.entries(filters).every(([key, select]) => !select.value || String(s[key]) === select.value) &&
          (!wanted || s.response.toLowerCase().includes(wanted) || prompts[s.prompt][1].toLowerCase().includes(wanted)),
      );
      count.textContent = `${found.length.toLocaleString("en-GB")} of ${samples.length.toLocaleString("en-GB")} samples`;
      list.replaceChildren();
      show();
    }

    function show() {
      const from = list.children.length;
      for (const sample of found.slice(from, from + PAGE)) card(list, sample, prompts[sample.prompt]);
      more.hidden = list.children.length >= found.length;
    }

    for (const select of Object.values(filters)) select.addEventListener("change", filter);
    text.addEventListener("input", filter);
    more.addEventListener("click", show);
    filter();
  }

  function card(parent, sample, [id, prompt, gold]) {
    const box = make(parent, "article", "", { class: "card" });
    make(box, "div", `step ${sample.step}, prompt ${id}`, { class: "muted" });
    make(box, "div", prompt, { class: "text" });
    make(box, "div", `response ${sample.index + 1}`, { class: "muted" });
    make(box, "div", sample.response, { class: "text" });
    make(box, "div", `gold ${gold}`, { class: "muted gold" });
    const facts = make(box, "p");
    const chip = (text, bad = false) => (make(facts, "span", text, { class: bad ? "chip bad" : "chip" }), facts.append(" "));
    chip(sample.clean === null ? "no value" : `reward ${number(sample.clean)}`);
    if (sample.reward === null) chip("left out of the loss");
    else if (sample.reward !== sample.clean) chip(`disturbed: the loss saw ${number(sample.reward)}`, true);
    if (sample.correct !== null) chip(sample.correct ? "right" : "wrong");
    chip(`status ${sample.status}`);
    if (sample.truncated) chip("truncated", true);
    const parts = Object.entries(sample.parts);
    if (parts.length > 1) for (const [name, value] of parts) chip(`${name} ${number(value)}`);
  }

  const numbers = read("spread"), stored = read("stored");
  if (numbers) spread(numbers);
  if (stored) browse(stored);
})();
