// Pictures over training: a slider, a play button, a switch between kinds, outlines of masks, and rows that enlarge.
for (const looks of document.querySelectorAll('.looks')) {
  const slider = looks.querySelector('.slider input'), play = looks.querySelector('.play');
  const buttons = [...looks.querySelectorAll('.kinds button')];
  let kind = buttons.length ? buttons[0].dataset.kind : '';
  const draw = () => {
    for (const over of looks.querySelectorAll('.over[data-last]')) {
      const frames = [...over.children].filter(frame => frame.dataset.kind);
      const has = name => frames.some(frame => frame.dataset.kind === name);
      const own = has(kind) ? kind : frames.length ? frames[0].dataset.kind : '';
      const count = frames.filter(frame => frame.dataset.kind === own).length;
      const at = slider ? Math.round(slider.value * (count - 1) / slider.max) : count - 1;
      for (const frame of frames) {
        frame.hidden = frame.dataset.kind !== own || Number(frame.dataset.at) !== at;
        const said = frame.hidden ? null : over.parentElement.querySelector('.error');
        if (said) said.textContent = frame.dataset.error || '';
      }
    }
    if (slider) {
      const name = slider.dataset.names.split('|')[slider.value];
      slider.nextElementSibling.textContent = name;
      slider.setAttribute('aria-valuetext', name);
    }
  };
  if (slider) slider.addEventListener('input', draw);
  for (const button of buttons) {
    button.addEventListener('click', () => {
      kind = button.dataset.kind;
      for (const other of buttons) other.setAttribute('aria-pressed', String(other === button));
      draw();
    });
  }
  if (play) {
    let timer = 0;
    const stop = () => { clearInterval(timer); timer = 0; play.textContent = 'play'; };
    play.addEventListener('click', () => {
      if (timer) return stop();
      if (slider.value === slider.max) slider.value = 0;
      play.textContent = 'stop';
      draw();
      timer = setInterval(() => {
        slider.value = Number(slider.value) + 1;
        draw();
        if (slider.value === slider.max) stop();
      }, 600);
    });
  }
  const outlines = looks.querySelector('.outlines');
  if (outlines) outlines.addEventListener('change', () => looks.classList.toggle('outlined', outlines.checked));
}
const rows = document.querySelectorAll('.triptych, .strip, .pair');
if (rows.length) {
  const dialog = document.createElement('dialog');
  const shown = document.createElement('div'), close = document.createElement('button');
  dialog.setAttribute('aria-label', 'Enlarged pictures');
  close.textContent = 'close';
  close.addEventListener('click', () => dialog.close());
  dialog.addEventListener('click', event => { if (event.target === dialog) dialog.close(); });
  dialog.append(close, shown);
  document.body.append(dialog);
  const enlarge = row => {
    shown.replaceChildren(...[...row.querySelectorAll('img')].filter(one => one.offsetParent).map(one => {
      const figure = document.createElement('figure'), caption = document.createElement('figcaption');
      const copy = one.cloneNode();
      copy.removeAttribute('width');
      copy.removeAttribute('height');
      caption.textContent = one.alt;
      figure.append(copy, caption);
      return figure;
    }));
    dialog.showModal();
  };
  for (const row of rows) {
    const first = row.querySelector('img');
    if (!first) continue;
    const button = document.createElement('button');
    button.className = 'enlarge';
    button.textContent = 'enlarge';
    button.setAttribute('aria-label', 'enlarge ' + first.alt);
    button.addEventListener('click', () => enlarge(row));
    row.append(button);
    row.addEventListener('click', event => { if (event.target.tagName === 'IMG') enlarge(row); });
  }
}
// A map of images: the thumbnail of the dot that is pointed at, cut from the sheet.
for (const map of document.querySelectorAll('.map')) {
  const svg = map.querySelector('svg'), sheet = map.querySelector('.sheet img');
  if (!sheet) continue;
  const dots = [...svg.querySelectorAll('circle')], columns = Number(map.dataset.columns), rows = Number(map.dataset.rows);
  const card = document.createElement('div'), canvas = document.createElement('canvas'), words = document.createElement('div');
  card.className = 'card';
  card.hidden = true;
  canvas.width = canvas.height = 128;
  card.append(canvas, words);
  map.append(card);
  let current = -1;
  const show = i => {
    if (current >= 0) dots[current].classList.remove('on');
    current = i;
    const dot = dots[i], side = sheet.naturalWidth / columns, high = sheet.naturalHeight / rows;
    dot.classList.add('on');
    const place = Number(dot.dataset.i), context = canvas.getContext('2d');
    context.imageSmoothingEnabled = false;
    context.drawImage(sheet, place % columns * side, Math.floor(place / columns) * high, side, high, 0, 0, 128, 128);
    words.textContent = dot.dataset.name;
    card.hidden = false;
    const box = dot.getBoundingClientRect(), outer = map.getBoundingClientRect();
    card.style.left = Math.min(outer.width - 160, Math.max(0, box.x - outer.x + 12)) + 'px';
    card.style.top = Math.max(0, box.y - outer.y - 60) + 'px';
  };
  svg.addEventListener('pointermove', event => {
    const frame = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / frame.width;
    const x = (event.clientX - frame.x) * scale, y = (event.clientY - frame.y) * scale;
    let best = -1, least = 400;
    dots.forEach((dot, i) => {
      const far = (dot.cx.baseVal.value - x) ** 2 + (dot.cy.baseVal.value - y) ** 2;
      if (far < least) { least = far; best = i; }
    });
    if (best >= 0) show(best);
  });
  svg.addEventListener('pointerleave', () => { card.hidden = true; });
  svg.addEventListener('keydown', event => {
    const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
    if (!step) return;
    event.preventDefault();
    show((current + step + dots.length) % dots.length);
  });
}
// The likeness of all patches to the one that is clicked, from stored codes.
for (const place of document.querySelectorAll('.clickable')) {
  const [rows, columns] = place.dataset.grid.split(' ').map(Number), width = Number(place.dataset.width);
  const codes = Int8Array.from(atob(place.dataset.codes.split(' ')[1]), letter => letter.charCodeAt(0));
  const canvas = place.querySelector('canvas'), context = canvas.getContext('2d');
  let chosen = Math.floor(rows / 2) * columns + Math.floor(columns / 2);
  const draw = () => {
    const picture = context.createImageData(columns, rows);
    for (let i = 0; i < rows * columns; i++) {
      let sum = 0;
      for (let k = 0; k < width; k++) sum += codes[i * width + k] * codes[chosen * width + k];
      const alike = Math.max(0, Math.min(1, sum / 16129));
      picture.data.set(i === chosen ? [255, 60, 60, 255] : [12, 14, 24, Math.round(235 * (1 - alike))], 4 * i);
    }
    context.putImageData(picture, 0, 0);
    place.classList.add('on');
  };
  place.addEventListener('click', event => {
    const frame = place.getBoundingClientRect();
    const x = Math.floor((event.clientX - frame.x) / frame.width * columns);
    const y = Math.floor((event.clientY - frame.y) / frame.height * rows);
    chosen = Math.min(rows - 1, Math.max(0, y)) * columns + Math.min(columns - 1, Math.max(0, x));
    draw();
  });
  place.addEventListener('keydown', event => {
    const step = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns}[event.key];
    if (!step) return;
    event.preventDefault();
    if (chosen + step >= 0 && chosen + step < rows * columns) chosen += step;
    draw();
  });
}
