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
