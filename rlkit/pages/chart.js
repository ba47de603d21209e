// Draws each <figure class="chart"> from the JSON beside its .plot, at the width that it has.
"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const NEAR = 14; // pixels within which another curve's point is read out too
  const clocks = JSON.parse(document.getElementById("clocks")?.textContent ?? "{}");
  const redraws = []; // of each chart: draws it over another axis

  // What the x axis of charts over steps can be: its label, and what it makes of a step by a clock.
  function axes() {
    const known = Object.values(clocks), found = { steps: ["step", null] };
    if (!known.length) return found;
    if (known[0].tokens) found.tokens = ["response tokens", (clock, step) => along(clock.steps, clock.tokens, step)];
    if (known[0].seconds) {
      const most = Math.max(...known.map((clock) => clock.seconds.at(-1)));
      const [unit, size] = most >= 7200 ? ["hours", 3600] : most >= 120 ? ["minutes", 60] : ["seconds", 1];
      found.time = [`${unit} of training`, (clock, step) => along(clock.steps, clock.seconds, step) / size];
    }
    return found;
  }

  // The value at a step, linear between those known, from 0 at step 0 on.
  function along(steps, values, step) {
    const after = steps.findIndex((each) => each >= step);
    if (after < 0) return values.at(-1);
    const [a, from] = after ? [steps[after - 1], values[after - 1]] : [0, 0];
    return steps[after] === a ? values[after] : from + ((step - a) / (steps[after] - a)) * (values[after] - from);
  }

  function axisButtons() {
    const box = document.getElementById("axis"), offered = axes();
    if (!box) return;
    const set = box.appendChild(document.createElement("fieldset"));
    set.appendChild(document.createElement("legend")).textContent = "x axis of the charts";
    const buttons = set.appendChild(document.createElement("div"));
    buttons.className = "buttons";
    for (const name in offered) {
      const button = buttons.appendChild(document.createElement("button"));
      Object.assign(button, { type: "button", className: "pick", textContent: name });
      button.setAttribute("aria-pressed", String(name === "steps"));
      button.addEventListener("click", () => {
        for (const each of buttons.children) each.setAttribute("aria-pressed", String(each === button));
        for (const redraw of redraws) redraw(...offered[name]);
      });
    }
  }

  function element(parent, name, attributes = {}, text = "") {
    const made = document.createElementNS(SVG, name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (text) made.textContent = text;
    parent.appendChild(made);
    return made;
  }

  // 0.853, 1,234, 4.5e-6
  function number(value) {
    const size = Math.abs(value);
    if (size >= 1e7 || (size > 0 && size < 1e-3)) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
    if (size >= 1000) return Math.round(value).toLocaleString("en-GB");
    return String(Number(value.toPrecision(4)));
  }

  // Round numbers that cover low..high, about `count` of them.
  function ticks(low, high, count) {
    const raw = (high - low) / count;
    const decade = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].find((factor) => factor * decade >= raw * 0.7) * decade;
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++) found.push(at * step);
    return found.map((value) => Number(value.toPrecision(12)));
  }

  function logTicks(low, high, count) {
    const found = [];
    const decades = Math.log10(high / low);
    const every = Math.max(1, Math.ceil(decades / count));
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
      if (power % every === 0) found.push(...(decades < 1.5 ? [1, 2, 5] : [1]).map((factor) => factor * 10 ** power));
    }
    return found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
  }

  function drawable(chart, value) {
    return value !== null && (!chart.log || value > 0);
  }

  function yDomain(chart, shown) {
    const values = shown.flatMap((s) => [...s.y, ...(s.low ?? []), ...(s.high ?? [])]).filter((v) => drawable(chart, v));
    if (chart.line !== null && drawable(chart, chart.line)) values.push(chart.line);
    let low = values.length ? values.reduce((a, b) => Math.min(a, b)) : chart.log ? 0.1 : 0;
    let high = values.length ? values.reduce((a, b) => Math.max(a, b)) : 1;
    if (chart.log) return [chart.y_min ?? low / (low === high ? 3 : 1.25), chart.y_max ?? high * (low === high ? 3 : 1.25)];
    const pad = high > low ? (high - low) * 0.06 : Math.abs(high) * 0.1 || 1;
    low = chart.y_min ?? low - pad;
    high = chart.y_max ?? high + pad;
    return high > low ? [low, high] : [low, low + 1];
  }

  // Runs of points without a gap.
  function runs(chart, series, columns) {
    const found = [];
    let open = null;
    series.x.forEach((x, i) => {
      if (columns.every((column) => drawable(chart, column[i]))) {
        if (open === null) found.push((open = []));
        open.push(i);
      } else open = null;
    });
    return found;
  }

  function path(points) {
    return points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  }

  function begin(figure) {
    const chart = JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
    const plot = figure.querySelector(".plot");
    const hidden = new Set();
    let scales = null;
    let at = null; // the x that is read out

    function draw() {
      const width = plot.clientWidth;
      if (width === 0) return;
      const height = parseInt(getComputedStyle(plot).minHeight, 10);
      const shown = chart.series.filter((_, i) => !hidden.has(i));
      const [low, high] = yDomain(chart, shown);
      const yTicks = chart.log ? logTicks(low, high, 5) : ticks(low, high, height > 250 ? 6 : 4);
      const labels = yTicks.map(number);
      const left = Math.max(...labels.map((label) => label.length), 2) * 7 + 10;
      const right = 10, top = chart.y_label ? 26 : 12, bottom = chart.x_label ? 40 : 24;
      const xs = (shown.length ? shown : chart.series).flatMap((s) => s.x);
      let xLow = xs.reduce((a, b) => Math.min(a, b), Infinity), xHigh = xs.reduce((a, b) => Math.max(a, b), -Infinity);
      if (!Number.isFinite(xLow)) [xLow, xHigh] = [0, 1];
      if (xLow === xHigh) [xLow, xHigh] = [xLow - 1, xHigh + 1];
      const x = (value) => left + ((value - xLow) / (xHigh - xLow)) * (width - left - right);
      const bend = chart.log ? Math.log10 : (value) => value;
      const y = (value) => height - bottom - ((bend(value) - bend(low)) / (bend(high) - bend(low))) * (height - top - bottom);
      scales = { x, y, xLow, xHigh, left, right, top, bottom, width, height };

      plot.querySelector("svg")?.remove();
      const svg = element(plot, "svg", { width, height, "aria-hidden": "true" });
      yTicks.forEach((value, i) => {
        element(svg, "line", { class: "rule", x1: left, x2: width - right, y1: y(value), y2: y(value) });
        element(svg, "text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, labels[i]);
      });
      const whole = xs.every(Number.isInteger);
      for (const value of ticks(xLow, xHigh, Math.max(2, Math.floor((width - left) / 70)))) {
        if (whole && !Number.isInteger(value)) continue;
        element(svg, "text", { x: x(value), y: height - bottom + 17, "text-anchor": "middle" }, number(value));
      }
      if (chart.x_label) {
        element(svg, "text", { x: (left + width - right) / 2, y: height - 5, "text-anchor": "middle" }, chart.x_label);
      }
      if (chart.y_label) element(svg, "text", { x: 0, y: 13 }, chart.y_label);
      if (chart.line !== null && drawable(chart, chart.line)) {
        element(svg, "line", { class: "line", x1: left, x2: width - right, y1: y(chart.line), y2: y(chart.line) });
      }
      const id = `clip-${[...document.querySelectorAll(".chart")].indexOf(figure)}`;
      element(element(svg, "clipPath", { id }), "rect", {
        x: left - 5, y: top - 5, width: width - left - right + 10, height: height - top - bottom + 10,
      });
      const inside = element(svg, "g", { "clip-path": `url(#${id})` });
      for (const s of shown) if (s.low && s.high) drawBand(inside, s);
      for (const s of shown) drawCurve(inside, s);
      element(svg, "g", { class: "over" });
      if (at !== null) readOut();
    }

    function drawBand(parent, s) {
      for (const run of runs(chart, s, [s.low, s.high])) {
        const edge = (column) => (i) => [scales.x(s.x[i]), scales.y(column[i])];
        const outline = [...run.map(edge(s.high)), ...run.map(edge(s.low)).reverse()];
        element(parent, "path", { class: "band", d: path(outline) + "Z", style: `fill:var(--c${s.color})` });
      }
    }

    function drawCurve(parent, s) {
      for (const run of runs(chart, s, [s.y])) {
        const points = run.map((i) => [scales.x(s.x[i]), scales.y(s.y[i])]);
        const style = `stroke:var(--c${s.color});${s.dashed ? "stroke-dasharray:6 4" : ""}`;
        element(parent, "path", { class: "curve", d: path(points), style });
        if (!s.marks && run.length > 1) continue;
        for (const [cx, cy] of points) element(parent, "circle", { cx, cy, r: 3.5, style: `fill:var(--c${s.color})` });
      }
    }

    // The shown points nearest to `at`: of the nearest curve, and of those not far from it.
    function nearest() {
      const found = [];
      chart.series.forEach((s, number) => {
        if (hidden.has(number)) return;
        let best = -1;
        s.x.forEach((x, i) => {
          if (drawable(chart, s.y[i]) && (best < 0 || Math.abs(x - at) < Math.abs(s.x[best] - at))) best = i;
        });
        if (best >= 0) found.push({ s, i: best, x: s.x[best] });
      });
      if (!found.length) return [];
      const head = found.reduce((a, b) => (Math.abs(b.x - at) < Math.abs(a.x - at) ? b : a)).x;
      return found.filter((f) => Math.abs(scales.x(f.x) - scales.x(head)) <= NEAR).map((f) => ({ ...f, head }));
    }

    function readOut() {
      const over = plot.querySelector(".over"), points = nearest();
      over.replaceChildren();
      plot.querySelector(".readout")?.remove();
      if (!points.length) return;
      const head = points[0].head, px = scales.x(head);
      element(over, "line", { class: "cursor", x1: px, x2: px, y1: scales.top, y2: scales.height - scales.bottom });
      const box = document.createElement("div");
      box.className = "readout";
      box.setAttribute("aria-live", "polite");
      row(box, null, `${chart.x_label} ${number(head)}`.trim());
      for (const { s, i, x } of points) {
        element(over, "circle", { cx: scales.x(x), cy: scales.y(s.y[i]), r: 4, style: `fill:var(--c${s.color})` });
        const band = s.low?.[i] != null && s.high?.[i] != null ? ` (${number(s.low[i])} to ${number(s.high[i])})` : "";
        const where = x === head ? "" : ` at ${number(x)}`;
        row(box, s, `${chart.series.length > 1 ? s.name + " " : ""}${number(s.y[i])}${band}${where}`);
      }
      box.style[px > scales.width / 2 ? "right" : "left"] =
        `${(px > scales.width / 2 ? scales.width - px : px) + 10}px`;
      plot.appendChild(box);
    }

    function row(box, s, text) {
      const line = box.appendChild(document.createElement("div"));
      const swatch = s && line.appendChild(document.createElement("i"));
      if (s) Object.assign(swatch, { className: "swatch", style: `background:var(--c${s.color})` });
      line.appendChild(document.createElement(s ? "span" : "b")).textContent = text;
    }

    function leave() {
      at = null;
      plot.querySelector(".over")?.replaceChildren();
      plot.querySelector(".readout")?.remove();
    }

    function point(event) {
      if (!scales) return;
      const share = (event.clientX - plot.getBoundingClientRect().left - scales.left) / (scales.width - scales.left - scales.right);
      at = scales.xLow + share * (scales.xHigh - scales.xLow);
      readOut();
    }

    function step(event) {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by || !scales) return;
      const all = [...new Set(chart.series.filter((_, i) => !hidden.has(i)).flatMap((s) => s.x))].sort((a, b) => a - b);
      const next = at === null ? (by > 0 ? 0 : all.length - 1) : by > 0 ? all.findIndex((x) => x > at) : all.findLastIndex((x) => x < at);
      if (all[next] === undefined) return;
      event.preventDefault();
      at = all[next];
      readOut();
    }

    function legend() {
      const list = document.createElement("div");
      list.className = "legend";
      chart.series.forEach((s, i) => {
        const button = list.appendChild(document.createElement("button"));
        button.type = "button";
        button.setAttribute("aria-pressed", "true");
        const swatch = button.appendChild(document.createElement("i"));
        swatch.className = s.dashed ? "dashed" : "";
        swatch.style.borderColor = `var(--c${s.color})`;
        button.appendChild(document.createElement("span")).textContent = s.name;
        button.addEventListener("click", () => {
          if (!hidden.delete(i)) hidden.add(i);
          button.setAttribute("aria-pressed", String(!hidden.has(i)));
          draw();
        });
      });
      plot.before(list);
    }

    if (chart.x_label === "step" && chart.series.every((s) => clocks[s.clock])) {
      const steps = chart.series.map((s) => s.x);
      redraws.push((label, take) => {
        chart.x_label = label;
        chart.series.forEach((s, i) => (s.x = take ? steps[i].map((step) => take(clocks[s.clock], step)) : steps[i]));
        leave();
        draw();
      });
    }
    if (chart.series.length > 1) legend();
    plot.addEventListener("pointermove", point);
    plot.addEventListener("pointerdown", point);
    plot.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && leave());
    plot.addEventListener("keydown", step);
    plot.addEventListener("blur", leave);
    new ResizeObserver(() => scales?.width !== plot.clientWidth && draw()).observe(plot);
    draw();
  }

  document.querySelectorAll("figure.chart").forEach(begin);
  axisButtons();
})();
