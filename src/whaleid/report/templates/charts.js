"use strict";
/* Draws the charts that report/charts.py describes. Every text is set as text, never as HTML. */
const drawing = (() => {
  const HEIGHT = 240, LEFT = 52, RIGHT = 12, TOP = 10, BOTTOM = 40;

  function shape(parent, name, attributes, text) {
    const made = document.createElementNS(parent.namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  }

  function element(parent, name, attributes = {}, text) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  }

  /** Round numbers between two values, about `count` of them. */
  function ticks(low, high, count) {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= rough);
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at += 1) found.push(at * step);
    return found.map((value) => [value, value.toFixed(Math.max(0, -Math.floor(Math.log10(step) + 1e-9)))]);
  }

  function range(values) {
    const low = Math.min(...values), high = Math.max(...values);
    const room = (high - low || Math.abs(high) || 1) * 0.04;
    return [low - room, high + room];
  }

  /** Draw a chart (charts.py describes its data) into its figure. */
  function draw(figure, chart) {
    const svg = figure.querySelector("svg"), legend = figure.querySelector(".legend");
    svg.replaceChildren();
    legend.replaceChildren();
    const points = chart.series.flatMap((one) => one.points);
    const width = Math.max(260, figure.clientWidth);
    const [x0, x1] = range([...points.map((point) => point[0]), ...chart.marks.map((mark) => mark.x)]);
    const [y0, y1] = range(points.flatMap((point) => [point[1], ...point.slice(2, 4)]).filter((y) => y !== null));
    const x = (value) => LEFT + (value - x0) / (x1 - x0) * (width - LEFT - RIGHT);
    const y = (value) => HEIGHT - BOTTOM - (value - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    svg.setAttribute("aria-label", `${figure.querySelector("figcaption").textContent}: ${chart.y} by ${chart.x}`);
    for (const [value, text] of ticks(y0, y1, 4)) {
      shape(svg, "line", { x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value), class: "grid" });
      shape(svg, "text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, text);
    }
    for (const [value, text] of ticks(x0, x1, width / 90)) {
      shape(svg, "line", { x1: x(value), x2: x(value), y1: TOP, y2: HEIGHT - BOTTOM, class: "grid" });
      shape(svg, "text", { x: x(value), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, text);
    }
    shape(svg, "text", { x: (LEFT + width) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, chart.x);
    chart.series.forEach((one, number) => drawSeries(svg, one, one.kind === "dashed" ? "quiet" : `s${number % 6}`, x, y));
    chart.marks.forEach((mark) => shape(svg, "line", { x1: x(mark.x), x2: x(mark.x), y1: TOP, y2: HEIGHT - BOTTOM, class: "mark" }));
    chart.series.forEach((one, number) =>
      element(legend, "span", { class: one.kind === "dashed" ? "quiet" : `s${number % 6}` }, one.name));
    chart.marks.forEach((mark) => element(legend, "span", { class: "mark" }, mark.name));
  }

  function drawSeries(svg, one, style, x, y) {
    const path = one.points.map((point) => `${x(point[0]).toFixed(1)},${y(point[1]).toFixed(1)}`).join(" ");
    if (one.kind === "area") {
      const ends = [one.points[0][0], one.points[one.points.length - 1][0]].map((value) => `${x(value).toFixed(1)},${y(0).toFixed(1)}`);
      shape(svg, "polygon", { points: `${ends[0]} ${path} ${ends[1]}`, class: `area ${style}` });
    } else if (one.kind !== "dots") {
      shape(svg, "polyline", { points: path, class: `${one.kind} ${style}` });
    }
    if (one.kind !== "dots" && one.points.length > 1) return;
    for (const [left, height, low, high, label] of one.points) {
      if (low != null) shape(svg, "line", { x1: x(left), x2: x(left), y1: y(low), y2: y(high), class: `interval ${style}` });
      const dot = shape(svg, "circle", { cx: x(left), cy: y(height), r: 4, class: style });
      shape(dot, "title", {}, `${label ?? one.name}: ${left}, ${height}`);
    }
  }

  const figures = [...document.querySelectorAll("figure.chart")];
  const all = (charts) => figures.forEach((figure) => charts[figure.dataset.chart] && draw(figure, charts[figure.dataset.chart]));

  return { element, figures, draw, all };
})();
