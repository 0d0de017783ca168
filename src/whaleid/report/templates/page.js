/* Scores the queries under any threshold, and shows them as cards. Every text is set as text, never as HTML, so that no
   label can break the page. */
(() => {
  const { queries, charts, map } = JSON.parse(document.getElementById("data").textContent);
  const { k, unknown, identities, truth, guesses } = queries;
  const scores = Float32Array.from(queries.scores, (score) => score ?? -Infinity);
  const cards = queries.row.length; // the queries behind these are simulated unknown ones
  const weight = truth.map((code) => queries.weights[code >= 0 ? 0 : 1]);
  const PAGE = 24; // cards at a time, so that thousands of queries stay quick
  const STEPS = 400; // of the slider
  const byId = (id) => document.getElementById(id);
  const { element, figures, draw } = drawing; // charts.js

  /* ------------------------------------------------------------------------------------------------- scoring */

  let tried = null; // the threshold that is tried for all folds; null: those in use

  const thresholdOf = (query) => {
    if (unknown === null) return -Infinity;
    return tried ?? queries.thresholds[queries.fold[query]] ?? -Infinity;
  };

  const place = truth.map((code, query) => { // of the truth among the identities, from 1; 0: not there
    if (code < 0 || query >= cards) return 0;
    return guesses.slice(query * k, query * k + k).indexOf(code) + 1;
  });

  /** Number of the first k identities whose score reaches the threshold: the unknown label stands behind them. */
  function above(query, threshold) {
    let count = 0;
    while (count < k && scores[query * k + count] >= threshold) count += 1;
    return count;
  }

  /** Rank of the right answer among the first k guesses, 0 where it is not one of them. */
  function rankOf(query, threshold) {
    const limit = Math.fround(threshold);
    let rank = place[query];
    if (truth[query] < 0) rank = unknown === null ? 0 : above(query, limit) + 1;
    else if (rank && scores[query * k + rank - 1] < limit) rank += 1;
    return rank <= k ? rank : 0;
  }

  /** Weighted mean of a value over the queries that a condition holds for; NaN where there are none. */
  function mean(value, condition = () => true) {
    let sum = 0, total = 0;
    for (let query = 0; query < truth.length; query += 1) {
      if (!weight[query] || !condition(query)) continue;
      sum += weight[query] * value(query);
      total += weight[query];
    }
    return sum / total;
  }

  function mapAt(thresholds) {
    return mean((query) => { const rank = rankOf(query, thresholds(query)); return rank && 1 / rank; });
  }

  const best = (query) => scores[query * k];
  const isRight = (query) => place[query] === 1;
  const accepted = (query) => best(query) >= Math.fround(tried ?? (unknown === null ? -Infinity : thresholdOf(query)));

  /** Points (share rejected, accuracy of the others): one for each different best score, from the highest. */
  function rejectionCurve() {
    const order = truth.map((_, query) => query).filter((query) => weight[query] > 0);
    order.sort((a, b) => best(b) - best(a));
    const total = order.reduce((sum, query) => sum + weight[query], 0);
    const points = [];
    let taken = 0, right = 0;
    order.forEach((query, at) => {
      taken += weight[query];
      right += isRight(query) ? weight[query] : 0;
      const last = at + 1 === order.length || best(order[at + 1]) < best(query);
      if (last) points.push([1 - taken / total, right / taken]);
    });
    return points;
  }

  const drawAll = () => drawing.all(charts);

  /* ----------------------------------------------------------------------------------------------- threshold */

  const slider = byId("threshold");
  const finite = truth.map((_, query) => best(query)).filter(Number.isFinite);
  const [lowest, highest] = finite.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
  const percent = (share) => (Number.isNaN(share) ? "none" : `${(100 * share).toFixed(1)} %`);

  function prepareCharts() {
    const line = (name, points) => ({ name, kind: "line", points });
    const tries = Array.from({ length: 101 }, (_, at) => lowest + (highest - lowest) * at / 100);
    const shown = rejectionCurve();
    const every = Math.ceil(shown.length / 500); // a curve of 500 points looks the same
    charts.rejection = { x: "share of the queries that is rejected", y: "accuracy of the others", marks: [],
      series: [line("queries out of fold", shown.filter((_, at) => at % every === 0 || at + 1 === shown.length))] };
    if (unknown !== null) {
      charts.map = { x: "threshold", y: `MAP@${k}`, marks: [], series: [line("one threshold for all folds", tries.map((one) => [one, mapAt(() => one)]))] };
    }
  }

  function showFigures() {
    const called = (query) => best(query) < Math.fround(thresholdOf(query));
    const known = (query) => truth[query] >= 0;
    const values = { [`MAP@${k}, out of fold`]: ["value-map", mapAt(thresholdOf).toFixed(5)] };
    if (unknown !== null) {
      values[`called ${unknown}`] = ["value-new", percent(mean(called))];
      values[`of the unknown queries, called ${unknown}`] = ["value-found", percent(mean(called, (query) => !known(query)))];
      values[`of the known queries, called ${unknown}`] = ["value-missed", percent(mean(called, known))];
    }
    values["of the queries, accepted"] = ["value-accepted", percent(mean(accepted))];
    values["of the accepted, right"] = ["value-accuracy", percent(mean(isRight, accepted))];
    byId("figures").replaceChildren();
    for (const [name, [id, text]] of Object.entries(values)) element(element(byId("figures"), "div"), "b", { id }, text).after(name);
    byId("threshold-value").textContent = tried === null ? (unknown === null ? "none" : "in use, one a fold") : tried.toFixed(4);
    byId("fitted").setAttribute("aria-pressed", tried === null);
    const rejected = 1 - mean(accepted);
    charts.rejection.marks = [{ x: rejected, name: `rejected: ${percent(rejected)}` }];
    if (unknown !== null) charts.map.marks = tried === null ? [] : [{ x: tried, name: `threshold ${tried.toFixed(4)}` }];
    for (const figure of figures) if (["map", "rejection"].includes(figure.dataset.chart)) draw(figure, charts[figure.dataset.chart]);
  }

  function tryThreshold(value) {
    tried = value;
    showFigures();
    filter();
    drawMap();
  }

  /* --------------------------------------------------------------------------------------------------- cards */

  let found = [], first = 0;

  /** The first k guesses under the threshold: { code, score, row }; code -1: the unknown label. */
  function guessesOf(query) {
    const listed = [];
    for (let at = query * k; at < query * k + k; at += 1) {
      if (guesses[at] >= 0) listed.push({ code: guesses[at], score: scores[at], row: queries.pictures[at] });
    }
    const threshold = thresholdOf(query);
    if (unknown !== null && threshold > -Infinity) listed.splice(above(query, Math.fround(threshold)), 0, { code: -1, score: threshold, row: -1 });
    return listed.slice(0, k);
  }

  const nameOf = (code) => (code >= 0 ? identities[code] : unknown ?? "an identity that is not in the gallery");
  const isRightGuess = (guess, query) => guess.code === truth[query] && (guess.code >= 0 || unknown !== null);
  const sizeName = (size) => (size >= 6 ? "6+" : size >= 2 ? "2-5" : String(size));

  const STATES = {
    all: () => true,
    right: (query) => rankOf(query, thresholdOf(query)) === 1,
    wrong: (query) => rankOf(query, thresholdOf(query)) !== 1 && (truth[query] >= 0 || unknown !== null),
    called: (query) => above(query, Math.fround(thresholdOf(query))) === 0,
    missed: (query) => truth[query] >= 0 && above(query, Math.fround(thresholdOf(query))) === 0,
    new: (query) => truth[query] < 0,
  };
  const late = (query) => rankOf(query, thresholdOf(query)) || k + 1;
  const name = (query) => queries.names[queries.row[query]];
  const ORDERS = {
    sure: (a, b) => best(b) - best(a),
    unsure: (a, b) => best(a) - best(b),
    late: (a, b) => late(b) - late(a) || best(b) - best(a),
    name: (a, b) => (name(a) < name(b) ? -1 : 1),
  };

  /** Whether a query fits the text: an identity's whole name, or a part of an image's or identity's name. */
  function searcher(text) {
    const wanted = text.trim().toLowerCase();
    if (!wanted) return () => true;
    const whole = identities.findIndex((identity) => identity.toLowerCase() === wanted);
    if (whole >= 0) return (query) => truth[query] === whole;
    return (query) => name(query).toLowerCase().includes(wanted) || nameOf(truth[query]).toLowerCase().includes(wanted);
  }

  /** Whether a query fits the filters by further columns of the competition (species, camera, ...). */
  const columns = [...document.querySelectorAll("#filters [data-column]")];
  const fitsColumns = (query) => columns.every(({ value, dataset }) =>
    value === "all" || queries.columns[dataset.column].codes[query] === Number(value));

  function filter() {
    const state = STATES[byId("state").value], size = byId("size").value, fits = searcher(byId("search").value);
    found = queries.row.map((_, query) => query)
      .filter((query) => state(query) && (size === "all" || sizeName(queries.size[query]) === size) && fits(query) && fitsColumns(query));
    const answerable = found.filter((query) => truth[query] >= 0 || unknown !== null);
    byId("share").textContent = answerable.length
      ? `first guess right for ${percent(answerable.filter(STATES.right).length / answerable.length)}` : "";
    found.sort(ORDERS[byId("order").value]);
    show(0);
  }

  function show(start) {
    first = Math.max(0, Math.min(start, found.length - 1));
    first -= first % PAGE;
    const shown = found.slice(first, first + PAGE);
    byId("cards").replaceChildren(...shown.map(card));
    if (shown.length) byId("cards").firstChild.tabIndex = 0;
    byId("count").textContent = shown.length
      ? `${first + 1} to ${first + shown.length} of ${found.length.toLocaleString("en")} queries` : "No query fits.";
    byId("before").disabled = first === 0;
    byId("after").disabled = first + PAGE >= found.length;
  }

  function search(text, state) {
    byId("search").value = text;
    byId("state").value = state;
    for (const select of [byId("size"), ...columns]) select.value = "all";
    filter();
    byId("queries").scrollIntoView();
    focusCard(0);
  }

  function picture(parent, row, description, style) {
    const figure = element(parent, "figure", { class: style });
    if (row >= 0) element(figure, "img", { src: `images/${row}.webp`, alt: description, loading: "lazy", decoding: "async" });
    else element(figure, "div", { class: "none" }, "no picture");
    return element(figure, "figcaption");
  }

  function card(query) {
    const listed = guessesOf(query), right = listed.length > 0 && isRightGuess(listed[0], query);
    const item = document.createElement("li");
    item.className = "card";
    item.tabIndex = -1;
    item.setAttribute("aria-label", `${name(query)}, ${nameOf(truth[query])}: first guess ${right ? "right" : "wrong"}`);
    const caption = picture(item, queries.row[query], `query ${name(query)}`, "query");
    element(caption, "b", {}, nameOf(truth[query]));
    caption.append(element(caption, "br"), name(query));
    const list = element(item, "ol", { class: "guesses" });
    for (const guess of listed) {
      const verdict = isRightGuess(guess, query) ? "right" : "wrong";
      const text = picture(element(list, "li"), guess.row, `${verdict} guess ${nameOf(guess.code)}`, verdict);
      element(text, "b", {}, `${verdict === "right" ? "✓" : "✗"} ${nameOf(guess.code)}`);
      text.append(` ${guess.score.toFixed(3)}`);
    }
    explainer(item, query, listed);
    return item;
  }

  const quoted = (text) => (/^[\w./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

  /** The command that explains the first guess with a picture and, where that is wrong, the right one among them. */
  function explainer(item, query, listed) {
    const pictured = listed.filter((guess) => guess.row >= 0);
    const asked = new Set([pictured[0], pictured.find((guess) => isRightGuess(guess, query))]);
    asked.delete(undefined);
    if (!asked.size) return;
    const why = element(item, "details", { class: "why" });
    element(why, "summary", {}, "Why?");
    const others = [...asked].map((guess) => quoted(queries.names[guess.row]));
    const label = `command that explains ${[...asked].map((guess) => nameOf(guess.code)).join(" and ")}`;
    const command = ["whaleid explain", quoted(name(query)), ...others, queries.options].join(" ");
    element(why, "pre", { tabindex: 0, "aria-label": label }, command);
  }

  /** Arrow keys move from card to card, and over the ends to the next page. */
  function walk(event) {
    const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    const items = [...byId("cards").children], at = items.indexOf(document.activeElement);
    if (!step || at < 0) return;
    event.preventDefault();
    let next = at + step;
    if (next < 0 && first > 0) { show(first - PAGE); next = PAGE - 1; }
    else if (next >= items.length && first + PAGE < found.length) { show(first + PAGE); next = 0; }
    focusCard(next);
  }

  function focusCard(at) {
    const item = byId("cards").children[at];
    if (!item) return;
    for (const other of byId("cards").children) other.tabIndex = -1;
    item.tabIndex = 0;
    item.focus();
  }

  /* ----------------------------------------------------------------------------------------------------- map */

  const queryOf = new Map(queries.row.map((row, query) => [row, query]));
  const RADIUS = 4, NEAR = 14; // pixels of a point, and how near a pointer must be to it

  /** Draw the labelled images as points: those of the shown identity are ringed. */
  function drawMap(shown = null) {
    const canvas = byId("map-points");
    if (!canvas) return;
    const width = canvas.clientWidth, height = Math.round(width * 0.6), scale = window.devicePixelRatio || 1;
    Object.assign(canvas, { width: width * scale, height: height * scale });
    const pen = canvas.getContext("2d"), style = getComputedStyle(canvas);
    pen.scale(scale, scale);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const tints = tintsOf(byId("map-colour").value);
    const colours = { right: colour("right"), wrong: colour("wrong"), other: colour("frame"), ring: colour("ink") };
    map.rows.forEach((row, at) => {
      const query = queryOf.get(row), [x, y] = placeOnMap(at, width, height);
      const verdict = at >= map.queries || query === undefined ? "other" : STATES.right(query) ? "right" : "wrong";
      pen.globalAlpha = verdict === "other" ? 0.55 : 0.9;
      pen.fillStyle = tints ? tints(at, query) : colours[verdict];
      pen.beginPath();
      if (verdict === "wrong") pen.rect(x - RADIUS, y - RADIUS, 2 * RADIUS, 2 * RADIUS); // told apart without colour
      else pen.arc(x, y, verdict === "other" ? RADIUS - 1.5 : RADIUS, 0, 2 * Math.PI);
      pen.fill();
      if (shown === null || map.identities[shown] === unknown || map.identities[at] !== map.identities[shown]) return;
      pen.globalAlpha = 1;
      pen.strokeStyle = colours.ring;
      pen.lineWidth = at === shown ? 3 : 1.5;
      pen.stroke();
    });
  }

  /** Colour of a point by what it shows (identity, fold, a further column); null: by whether the first guess is right. */
  function tintsOf(shown) {
    if (shown === "verdict") return null;
    const dark = window.matchMedia("(prefers-color-scheme: dark)").matches;
    const codes = new Map();
    const valueOf = { identity: (at) => map.identities[at], fold: (_, query) => String(queries.fold[query]).split(" ")[0] };
    const own = valueOf[shown] ?? ((_, query) => queries.columns[shown.slice(1)].codes[query]);
    return (at, query) => {
      const value = query === undefined && shown !== "identity" ? undefined : own(at, query);
      if (value === undefined || value === -1 || value === unknown) return dark ? "#4a5862" : "#b9c5cc";
      if (!codes.has(value)) codes.set(value, codes.size);
      return `hsl(${(codes.get(value) * 137.5) % 360} 65% ${dark ? 62 : 42}%)`; // the golden angle: neighbours differ
    };
  }

  const placeOnMap = (at, width, height) => [0, 1].map((side) => 8 + map.points[2 * at + side] * ([width, height][side] - 16));

  /** The point under the pointer, null where none is near. */
  function pointAt(event) {
    const { clientWidth: width, clientHeight: height } = event.target;
    let nearest = null, least = NEAR;
    map.rows.forEach((_, at) => {
      const [x, y] = placeOnMap(at, width, height), distance = Math.hypot(x - event.offsetX, y - event.offsetY);
      if (distance < least) [nearest, least] = [at, distance];
    });
    return nearest;
  }

  function pointTo(event) {
    const at = pointAt(event);
    drawMap(at);
    byId("map-name").textContent = at === null ? "\u00a0" : `${map.identities[at]} ${queries.names[map.rows[at]] ?? ""}`;
  }

  function showPoint(event) {
    const at = pointAt(event), query = at === null ? undefined : queryOf.get(map.rows[at]);
    if (query !== undefined) search(name(query), "all");
  }

  /* --------------------------------------------------------------------------------------------------- start */

  function start() {
    const used = Object.values(queries.thresholds ?? {}).filter((value) => value !== null);
    const middle = used.length ? used.reduce((sum, value) => sum + value) / used.length : lowest;
    Object.assign(slider, { min: lowest, max: highest, step: (highest - lowest) / STEPS || 1 });
    slider.value = middle;
    slider.addEventListener("input", () => tryThreshold(Number(slider.value)));
    byId("fitted").addEventListener("click", () => tryThreshold(null));
    byId("filters").addEventListener("input", filter);
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    byId("before").addEventListener("click", () => show(first - PAGE));
    byId("after").addEventListener("click", () => show(first + PAGE));
    byId("cards").addEventListener("keydown", walk);
    document.addEventListener("click", (event) => {
      const identity = event.target.dataset?.search;
      if (identity === undefined) return;
      search(identity, "wrong");
    });
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawMap());
    byId("map-points")?.addEventListener("pointermove", pointTo);
    byId("map-points")?.addEventListener("click", showPoint);
    byId("map-colour")?.addEventListener("input", () => drawMap());
    prepareCharts();
    drawAll();
    tryThreshold(null);
    let width = window.innerWidth;
    window.addEventListener("resize", () => { if (window.innerWidth !== width) { width = window.innerWidth; drawAll(); drawMap(); } });
  }

  start();
})();
