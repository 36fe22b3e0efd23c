'use strict';
// The page of `unveil explore`. What is asked for anew replaces what is still on its way: one request per lane.
const $ = id => document.getElementById(id);
const page = Math.random().toString(36).slice(2);
const lanes = new Map();
let state = null, image = null, start = 0, view = 'mask', number = 0;
let shown = [0, -1];                 // the runs that are shown, -1 for none
let mask = null;                     // of the first run: {grid, visible: {modality: [cells]}}
let counts = {};                     // visible patches of each modality
let patch = {attention: null, features: null};
let poll = 0, moving = null;
const PAGE = 12;

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === 'class') element.className = value;
    else if (key.startsWith('on')) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, '');
    else if (value !== null && value !== false) element.setAttribute(key, value);
  }
  element.append(...children.filter(child => child !== null));
  return element;
}
function complain(text) {
  $('error').textContent = text || '';
  $('error').hidden = !text;
}
async function ask(path, options = {}) {
  const answer = await fetch(path, options);
  const content = await answer.json();
  if (answer.status === 409) throw new DOMException('superseded', 'AbortError');
  if (!answer.ok) throw new Error(content.error || answer.statusText);
  return content;
}
// The answer to a request, or null where a newer one has taken its lane.
async function post(path, lane, params) {
  lanes.get(lane)?.abort();
  const stop = new AbortController();
  lanes.set(lane, stop);
  busy();
  try {
    const body = JSON.stringify({...params, lane: `${page} ${lane}`, number: ++number});
    return await ask(path, {method: 'POST', body, headers: {'Content-Type': 'application/json'}, signal: stop.signal});
  } catch (error) {
    if (error.name === 'AbortError') return null;
    throw error instanceof TypeError ? new Error('The server does not answer: is `unveil explore` still running?') : error;
  } finally {
    if (lanes.get(lane) === stop) lanes.delete(lane);
    busy();
  }
}
function busy() {
  clearTimeout(moving);
  if (lanes.size) moving = setTimeout(() => { $('busy').textContent = 'computing …'; }, 400);
  else $('busy').textContent = '';
}
function failed(target, error) {
  target.classList.remove('stale');
  target.replaceChildren(make('p', {class: 'error', role: 'alert'}, error.message));
}
const runs = () => shown.filter(run => run >= 0);
const first = () => state.runs[shown[0]];
const figureOf = (source, alt, title, note, cells) => make('figure', {},
  make('img', {src: source, alt, class: cells && cells < 9 ? 'pixels' : '', width: 224, height: 224}),
  make('figcaption', {}, title, note ? make('small', {}, note) : null));

// ---- runs and images
function drawRuns() {
  const box = $('runs');
  box.replaceChildren();
  [0, 1].forEach(place => {
    if (place === 1 && state.runs.length < 2) return;
    const select = make('select', {'aria-label': place ? 'Run to compare with' : 'Run', onchange: event => {
      shown[place] = Number(event.target.value);
      mask = null;
      settle();
    }});
    if (place) select.append(make('option', {value: -1}, 'no other run'));
    state.runs.forEach((run, i) => select.append(make('option', {value: i, selected: shown[place] === i}, run.name)));
    box.append(make('label', {}, place ? 'beside' : 'Run', select));
  });
  for (const run of runs()) {
    const {recipe, epoch, status, newer, error} = state.runs[run];
    const about = error ? 'not ready' : [recipe, epoch === null ? null : `epoch ${+epoch.toFixed(2)}`, status === 'completed' || status === 'finished' ? null : status].filter(Boolean).join(' · ');
    box.append(make('span', {class: 'soft'}, about));
    if (newer || error || (status && status !== 'finished' && status !== 'completed'))
      box.append(make('button', {type: 'button', onclick: () => reload(run)}, newer ? 'Load newer weights' : 'Look for newer weights'));
  }
}
async function reload(run) {
  try {
    state = await ask('reload', {method: 'POST', body: JSON.stringify({run}), headers: {'Content-Type': 'application/json'}});
    complain('');
    settle();
    if (!image) list();
  } catch (error) { complain(error.message); }
}
async function list() {
  const {images} = await ask(`images?start=${start}&count=${PAGE}`);
  $('earlier').disabled = start === 0;
  $('later').disabled = start + PAGE >= state.images.count;
  $('gallery').replaceChildren(...images.map(one => make('button', {
    type: 'button', title: one.name, 'aria-pressed': String(image?.id === one.id), 'data-id': one.id,
    onclick: () => choose(one),
  }, make('img', {src: thumb(one.id), alt: one.name, loading: 'lazy', width: 96, height: 96}))));
  if (!image && images.length) choose(images[0]);
}
const thumb = id => `thumbnail?image=${encodeURIComponent(id)}&session=${state.session}`;
function choose(one) {
  image = one;
  complain('');
  $('image-name').textContent = one.name;
  for (const button of $('gallery').children) button.setAttribute('aria-pressed', String(button.dataset.id === one.id));
  if ($('method').value === 'drawn' && mask) show();
  else { mask = null; show(); }
}
async function upload(file) {
  complain('');
  const modality = $('onto').value || '', most = 48;
  if (file.size > most << 20) return complain(`${file.name} has ${Math.round(file.size / 2 ** 20)} MiB, and at most ${most} are taken`);
  const onto = image && modality && modality !== state.images.first ? image.id : '';
  const query = new URLSearchParams({name: file.name, modality, onto});
  try { choose(await ask(`upload?${query}`, {method: 'POST', body: file})); }
  catch (error) { complain(error instanceof TypeError ? `${file.name} was not taken: it is too large, or the server has ended` : error.message); }
}

// ---- controls
function settle() {
  drawRuns();
  const run = first();
  complain('');
  $('gallery-note').textContent = state.images.note;
  $('gallery-note').hidden = !state.images.note;
  if (run.error) { for (const id of ['masked', 'attended', 'featured', 'near']) failed($(id), new Error(run.error)); return; }
  const chosen = $('method').value || (run.own ? 'own' : 'uniform');
  $('method').replaceChildren(...state.methods.filter(m => m.id !== 'own' || run.own).map(m =>
    make('option', {value: m.id, selected: m.id === chosen}, m.label)));
  const guide = $('guide').value || 'self';
  $('guide').replaceChildren(...state.guides.filter(g => g.run === undefined || g.run === shown[0]).map(g =>
    make('option', {value: g.id, selected: g.id === guide}, g.label)));
  for (const slider of document.querySelectorAll('.layer')) {
    slider.max = run.depth;
    slider.value = run.depth;
    slider.nextElementSibling.textContent = `${run.depth} of ${run.depth}`;
  }
  patch = {attention: null, features: null};
  const cells = run.grid[0] * run.grid[1];
  counts = Object.fromEntries(run.inputs.map(name => [name, Math.max(1, Math.floor(run.visible * cells + 1e-6))]));
  const several = run.inputs.length > 1;
  $('hidden-label').hidden = false;
  $('hidden').max = cells * run.inputs.length - 1;
  $('hidden').min = 1;
  $('shares').hidden = !several;
  $('onto-label').hidden = run.modalities.length < 2;
  $('onto').replaceChildren(...run.modalities.map(name => make('option', {value: name}, name)));
  $('shares').replaceChildren(...(several ? run.inputs : []).map(name => make('label', {class: 'range'}, `Visible ${name}`,
    make('input', {type: 'range', min: 0, max: cells, value: counts[name], 'data-modality': name, oninput: event => {
      counts[name] = Number(event.target.value);
      if (['own', 'drawn'].includes($('method').value)) $('method').value = 'uniform';
      mask = null;
      tell();
      show();
    }}), make('output', {}))));
  tell();
  if (image) show();
}
// What the sliders say of the mask.
function tell() {
  const run = first(), cells = run.grid[0] * run.grid[1], all = cells * run.inputs.length;
  const visible = mask ? Object.values(mask.visible).flat().length : run.inputs.reduce((sum, name) => sum + counts[name], 0);
  $('hidden').value = all - visible;
  $('hidden-text').textContent = `${all - visible} of ${all}, ${Math.round(100 * (all - visible) / all)} %`;
  for (const slider of $('shares').querySelectorAll('input')) {
    const count = mask ? mask.visible[slider.dataset.modality]?.length ?? 0 : counts[slider.dataset.modality];
    slider.value = count;
    slider.nextElementSibling ? slider.nextElementSibling.textContent = `${count} of ${cells}` : null;
  }
  $('guide-label').hidden = ['own', 'uniform', 'block', 'inverse-block', 'grid', 'drawn'].includes($('method').value);
}
function draw(visible, grid) {
  mask = {grid, visible};
  counts = Object.fromEntries(Object.entries(visible).map(([name, cells]) => [name, cells.length]));
  $('method').value = 'drawn';
  tell();
  show();
}

// ---- views
function show() {
  clearTimeout(poll);
  if (!image || !state) return;
  ({mask: showMask, attention: showAttention, features: showFeatures, neighbours: showNeighbours})[view]();
}
// A place for each run that is shown, kept while its new content is computed.
function places(id) {
  const box = $(id), wanted = runs();
  box.classList.toggle('two', wanted.length > 1);
  if ([...box.children].map(child => child.dataset.run).join() !== wanted.join())
    box.replaceChildren(...wanted.map(run => make('div', {class: 'run-result', 'data-run': run}, make('p', {class: 'soft'}, '…'))));
  for (const child of box.children) child.classList.add('stale');
  return [...box.children];
}
async function showMask() {
  const boxes = places('masked'), chosen = image;
  let given = mask && $('method').value === 'drawn' ? mask : null;
  for (const [place, box] of boxes.entries()) {
    const run = Number(box.dataset.run);
    if (state.runs[run].error) { failed(box, new Error(state.runs[run].error)); continue; }
    const params = {run, image: chosen.id, method: $('method').value, guide: $('guide').value || 'self',
      visible: counts, seed: Number($('seed').value) || 0, ...(given ? {drawn: given.visible, grid: given.grid} : {})};
    try {
      const answer = await post('mask', `mask ${place}`, params);
      if (!answer) return;
      if (place === 0) {
        given = mask = {grid: answer.grid, visible: answer.visible};
        if (params.method !== 'drawn') counts = Object.fromEntries(Object.entries(answer.visible).map(([n, c]) => [n, c.length]));
        tell();
      }
      drawMask(box, answer, state.runs[run], place === 0);
    } catch (error) {
      failed(box, error);
      if (place === 0) return;
    }
  }
}
const TITLES = {original: 'Image', attention: 'Attention', mask: 'Mask', prediction: 'Prediction', alone: 'The model alone',
  features: 'Distance of features', error: 'Error', filled: 'Filled in from the visible'};
function drawMask(box, answer, run, editable) {
  const held = document.activeElement?.closest?.('.mask');
  const focus = held && box.contains(held) ? [held.dataset.modality, held.dataset.at] : null;
  const maps = answer.maps.map(map => {
    if (map.missing) return make('div', {class: 'map'}, make('h3', {}, map.title), make('p', {class: 'soft'}, 'this sample has none'));
    const list = ['original', 'attention', 'mask', 'prediction', 'alone', 'features', 'filled', 'error'].flatMap(name => {
      if (name === 'mask') {
        if (!answer.visible[map.modality]) return [];
        const editor = maskEditor(map.pictures.original, answer.grid, answer.visible, map.modality, editable);
        const count = answer.visible[map.modality].length;
        return [make('figure', {}, editor, make('figcaption', {}, 'Mask', make('small', {}, `${count} of ${answer.grid[0] * answer.grid[1]} patches visible`)))];
      }
      if (!map.pictures[name]) return [];
      return [figureOf(map.pictures[name], `${TITLES[name]} of ${map.title}`, TITLES[name], map.notes[name], answer.grid[0])];
    });
    return make('div', {class: 'map', 'data-modality': map.modality}, answer.maps.length > 1 ? make('h3', {}, map.title) : null,
      make('div', {class: 'pictures'}, ...list), numbers(map), legend(map.key), map.note ? make('p', {class: 'soft'}, map.note) : null);
  });
  box.replaceChildren(...(runs().length > 1 ? [make('h2', {}, run.name)] : []),
    ...run.notes.map(note => make('p', {class: 'note'}, note)), ...maps);
  box.classList.remove('stale');
  if (focus) {
    const editor = box.querySelector(`.mask[data-modality="${CSS.escape(focus[0])}"]`);
    if (editor) { editor.dataset.at = focus[1]; editor.focus({preventScroll: true}); }
  }
}
function numbers(map) {
  const {prediction, filled} = map.errors ?? {};
  if (prediction === undefined) return null;
  const say = value => map.unit.startsWith('of ') ? `${(100 * value).toPrecision(3)} %` : value.toPrecision(3);
  const line = make('p', {class: 'numbers'}, `Error of hidden ${map.unit === '1 - cos' ? 'patches' : 'pixels'}: `,
    make('strong', {}, say(prediction)), ` ${map.unit}`);
  if (filled !== undefined) {
    const better = prediction < filled;
    line.append(`, filling in ${say(filled)}: `, make('span', {class: better ? 'better' : 'worse'},
      better ? 'the model is better' : 'the model is not better'));
  }
  return line;
}
function legend(key) {
  if (!key) return null;
  if (key.classes) return make('p', {class: 'key'}, ...key.classes.map((name, i) => make('span', {}, swatch([key.colours[i]], 11), ` ${name}`)));
  return make('p', {class: 'key'}, key.low, swatch(key.stops, 110), key.high);
}
function swatch(stops, width) {
  const canvas = make('canvas', {width, height: 11, 'aria-hidden': 'true'}), pen = canvas.getContext('2d');
  const ramp = pen.createLinearGradient(0, 0, width, 0);
  stops.forEach((stop, i) => ramp.addColorStop(stops.length > 1 ? i / (stops.length - 1) : 0, `rgb(${stop.join(' ')})`));
  pen.fillStyle = ramp;
  pen.fillRect(0, 0, width, 11);
  return canvas;
}
// A picture of patches: with `paint` they are drawn over, `act` is called for those that are clicked or dragged over.
function patchPicture(source, alt, grid, label, paint, start, act, end) {
  const [rows, columns] = grid, canvas = make('canvas', {width: columns * 16, height: rows * 16, 'aria-hidden': 'true'});
  const box = make('div', {class: 'mask', tabindex: 0, role: 'application', 'aria-label': label, 'data-at': 0},
    make('img', {src: source, alt, draggable: 'false', class: rows < 9 ? 'pixels' : '', width: 224, height: 224}), canvas);
  const pen = canvas.getContext('2d');
  const redraw = () => {
    pen.clearRect(0, 0, canvas.width, canvas.height);
    for (let cell = 0; cell < rows * columns; cell++) paint(pen, cell, cell % columns * 16, Math.floor(cell / columns) * 16, 16);
    if (document.activeElement === box && box.matches(':focus-visible')) {
      const at = Number(box.dataset.at);
      pen.lineWidth = 3;
      pen.strokeStyle = '#fff';
      pen.strokeRect(at % columns * 16 + 1.5, Math.floor(at / columns) * 16 + 1.5, 13, 13);
      pen.lineWidth = 1;
      pen.strokeStyle = '#000';
      pen.strokeRect(at % columns * 16 + 3.5, Math.floor(at / columns) * 16 + 3.5, 9, 9);
    }
  };
  const cellAt = event => {
    const frame = box.getBoundingClientRect();
    const x = Math.floor((event.clientX - frame.left) / frame.width * columns), y = Math.floor((event.clientY - frame.top) / frame.height * rows);
    return x >= 0 && y >= 0 && x < columns && y < rows ? y * columns + x : null;
  };
  let last = null;
  box.addEventListener('pointerdown', event => {
    const cell = cellAt(event);
    if (cell === null || event.button) return;
    box.setPointerCapture?.(event.pointerId);
    box.dataset.at = last = cell;
    start?.(cell);
    act(cell);
    redraw();
  });
  box.addEventListener('pointermove', event => {
    const cell = last === null ? null : cellAt(event);
    if (cell === null || cell === last || !end) return;
    last = cell;
    act(cell);
    redraw();
  });
  const up = () => { if (last !== null) { last = null; end?.(); } };
  box.addEventListener('pointerup', up);
  box.addEventListener('pointercancel', up);
  box.addEventListener('keydown', event => {
    const at = Number(box.dataset.at), step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (step) {
      const x = Math.min(columns - 1, Math.max(0, at % columns + step[0])), y = Math.min(rows - 1, Math.max(0, Math.floor(at / columns) + step[1]));
      box.dataset.at = y * columns + x;
    } else if (event.key === ' ' || event.key === 'Enter') { start?.(at); act(at); end?.(); }
    else return;
    event.preventDefault();
    redraw();
  });
  box.addEventListener('focus', redraw);
  box.addEventListener('blur', redraw);
  redraw();
  return box;
}
function maskEditor(source, grid, visible, modality, editable) {
  const cells = new Set(visible[modality]);
  const paint = (pen, cell, x, y, side) => {
    if (cells.has(cell)) return;
    pen.fillStyle = '#808080';
    pen.fillRect(x, y, side, side);
  };
  let hides = true;
  const box = patchPicture(source, `Mask of ${modality}`, grid,
    editable ? `Mask of ${modality}: arrows move, space hides or shows a patch` : `Mask of ${modality}`, paint,
    cell => { hides = cells.has(cell); },
    cell => { if (editable) hides ? cells.delete(cell) : cells.add(cell); },
    () => { if (editable) draw({...visible, [modality]: [...cells].sort((a, b) => a - b)}, grid); });
  box.dataset.modality = modality;
  if (!editable) { box.removeAttribute('tabindex'); box.setAttribute('role', 'img'); box.style.pointerEvents = 'none'; }
  return box;
}
const layerOf = id => Number($(id).querySelector('.layer').value);
const outline = cell => (pen, other, x, y, side) => {
  if (other !== cell) return;
  pen.lineWidth = 3;
  pen.strokeStyle = '#fff';
  pen.strokeRect(x + 1.5, y + 1.5, side - 3, side - 3);
  pen.lineWidth = 1;
  pen.strokeStyle = '#000';
  pen.strokeRect(x + .5, y + .5, side - 1, side - 1);
};
function clickable(source, alt, grid, label, cell, chosen) {
  const box = patchPicture(source, alt, grid, `${label}: arrows move, space chooses a patch`, outline(cell), null, chosen, null);
  box.classList.add('click');
  box.dataset.at = cell ?? 0;
  return box;
}
async function eachRun(id, path, params, drawn) {
  const chosen = image;
  for (const [place, box] of places(id).entries()) {
    const run = Number(box.dataset.run), {error, depth, name, notes} = state.runs[run];
    if (error) { failed(box, new Error(error)); continue; }
    try {
      const answer = await post(path, `${path} ${place}`, {run, image: chosen.id, ...params(run, depth, place)});
      if (!answer) return;
      const held = box.contains(document.activeElement) ? document.activeElement.dataset.at : null;
      box.replaceChildren(...(runs().length > 1 ? [make('h2', {}, name)] : []), ...drawn(answer, box, run));
      box.classList.remove('stale');
      if (held) { const again = box.querySelector('.mask'); again.dataset.at = held; again.focus({preventScroll: true}); }
    } catch (error) { failed(box, error); }
  }
}
// A block of the first run as one of another, by its share of the depth; a patch by its place.
const likeLayer = (layer, depth) => Math.max(1, Math.round(layer / first().depth * depth));
function likePatch(cell, run) {
  if (cell === null) return null;
  const [rows, columns] = first().grid, [r, c] = state.runs[run].grid;
  return Math.floor((Math.floor(cell / columns) + .5) / rows * r) * c + Math.floor((cell % columns + .5) / columns * c);
}
function showAttention() {
  const layer = layerOf('view-attention');
  return eachRun('attended', 'attention', (run, depth) => ({layer: likeLayer(layer, depth), patch: likePatch(patch.attention, run)}), (answer, box, run) => [
    make('div', {class: 'pictures'}, make('figure', {},
      clickable(answer.mean, `Mean attention of ${answer.query}`, answer.grid, 'Attention', likePatch(patch.attention, run), cell => { if (run === shown[0]) { patch.attention = cell; showAttention(); } }),
      make('figcaption', {}, 'Mean of all heads', make('small', {}, `of ${answer.query}, over ${answer.modality}`)))),
    make('div', {class: 'heads'}, ...answer.heads.map((head, i) => figureOf(head, `Attention of head ${i + 1}`, `Head ${i + 1}`, `${Math.round(100 * answer.share[i])} % on patches`, answer.grid[0])))]);
}
function showFeatures() {
  const layer = layerOf('view-features');
  return eachRun('featured', 'features', (run, depth) => ({layer: likeLayer(layer, depth), ...(patch.features === null ? {} : {patch: likePatch(patch.features, run)})}), (answer, box, run) => [
    make('div', {class: 'pictures'},
      make('figure', {}, clickable(answer.original, 'The image', answer.grid, 'Image', answer.patch, cell => { if (run === shown[0]) { patch.features = cell; showFeatures(); } }),
        make('figcaption', {}, 'Image', make('small', {}, 'click a patch'))),
      figureOf(answer.pca, 'Principal components of the patch features', 'Principal components', '', 0),
      figureOf(answer.similarity, 'Similarity to the chosen patch', 'Similarity to the patch', `cosines from ${answer.lowest.toFixed(2)} to 1`, answer.grid[0]))]);
}
function showNeighbours() {
  let waits = false;
  return eachRun('near', 'neighbours', () => ({}), answer => {
    if (!answer.features) {
      if (!waits) poll = setTimeout(showNeighbours, 700);
      waits = true;
      return [make('p', {}, `Features of ${answer.done} of ${answer.total} images are computed, once …`), make('progress', {max: answer.total, value: answer.done, 'aria-label': 'Images whose features are computed'})];
    }
    const row = (title, near) => [make('h3', {}, title), make('div', {class: 'gallery near'}, ...near.map(one => make('figure', {},
      make('button', {type: 'button', title: `Choose ${one.name}`, onclick: () => choose(one)}, make('img', {src: thumb(one.id), alt: one.name, width: 96, height: 96})),
      make('figcaption', {}, make('small', {}, `${one.cosine.toFixed(2)} ${one.name.split('/').pop()}`)))))];
    const searched = answer.total < answer.of ? `${answer.total} of ${answer.of} images were searched` : `${answer.total} images were searched`;
    return [...row('By features', answer.features), ...row('By colours alone', answer.colours), make('p', {class: 'soft'}, `${searched}; numbers are cosines.`)];
  });
}

// ---- events
function select(name) {
  view = name;
  for (const tab of document.querySelectorAll('[role=tab]')) {
    const chosen = tab.id === `tab-${name}`;
    tab.setAttribute('aria-selected', String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    $(tab.getAttribute('aria-controls')).hidden = !chosen;
  }
  show();
}
async function begin() {
  for (const tab of document.querySelectorAll('[role=tab]')) {
    tab.addEventListener('click', () => select(tab.id.slice(4)));
    tab.addEventListener('keydown', event => {
      const tabs = [...document.querySelectorAll('[role=tab]')], by = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      if (!by) return;
      const next = tabs[(tabs.indexOf(tab) + by + tabs.length) % tabs.length];
      next.focus();
      select(next.id.slice(4));
    });
  }
  $('controls').addEventListener('submit', event => event.preventDefault());
  $('method').addEventListener('change', () => { if ($('method').value !== 'drawn') mask = null; tell(); show(); });
  $('guide').addEventListener('change', () => { mask = null; show(); });
  $('seed').addEventListener('change', () => { mask = null; if ($('method').value === 'drawn') $('method').value = 'uniform'; show(); });
  $('again').addEventListener('click', () => {
    $('seed').value = (Number($('seed').value) + 1) % 1000000;
    $('seed').dispatchEvent(new Event('change'));
  });
  $('hidden').addEventListener('input', () => {
    const run = first(), cells = run.grid[0] * run.grid[1], all = cells * run.inputs.length;
    const before = Object.values(counts).reduce((a, b) => a + b, 0) || 1, after = all - Number($('hidden').value);
    const even = before === 1 || after > before;  // from few patches on, modalities grow alike
    let left = after;
    run.inputs.forEach((name, i) => {
      const own = i === run.inputs.length - 1 ? left : Math.round(even ? counts[name] + (after - before) / run.inputs.length : counts[name] * after / before);
      counts[name] = Math.max(0, Math.min(cells, own));
      left -= counts[name];
    });
    for (const name of run.inputs) {  // what a full modality cannot take
      const more = Math.max(-counts[name], Math.min(left, cells - counts[name]));
      counts[name] += more;
      left -= more;
    }
    if ($('method').value === 'drawn') $('method').value = 'uniform';
    mask = null;
    tell();
    show();
  });
  const all = () => Array.from({length: mask.grid[0] * mask.grid[1]}, (_, i) => i);
  $('clear').addEventListener('click', () => mask && draw(Object.fromEntries(Object.keys(mask.visible).map(name => [name, all()])), mask.grid));
  $('invert').addEventListener('click', () => mask && draw(Object.fromEntries(Object.entries(mask.visible).map(([name, cells]) => [name, all().filter(cell => !cells.includes(cell))])), mask.grid));
  for (const slider of document.querySelectorAll('.layer')) slider.addEventListener('input', () => {
    for (const other of document.querySelectorAll('.layer')) {
      other.value = slider.value;
      other.nextElementSibling.textContent = `${slider.value} of ${first().depth}`;
    }
    show();
  });
  $('class-token').addEventListener('click', () => { patch.attention = null; showAttention(); });
  $('earlier').addEventListener('click', () => { start = Math.max(0, start - PAGE); list(); });
  $('later').addEventListener('click', () => { start += PAGE; list(); });
  $('file').addEventListener('change', event => { const [file] = event.target.files; event.target.value = ''; if (file) upload(file); });
  document.addEventListener('dragover', event => event.preventDefault());
  document.addEventListener('drop', event => { event.preventDefault(); const [file] = event.dataTransfer.files; if (file) upload(file); });
  try {
    state = await ask('state');
    const ready = state.runs.findIndex(run => !run.error);
    shown = [Math.max(0, ready), state.runs.findIndex((run, i) => i > Math.max(0, ready) && !run.error)];
    settle();
    await list();
  } catch (error) { complain(error.message); }
}
begin();
