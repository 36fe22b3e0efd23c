// Reads values back out of the drawn paths, so that nothing is in the page twice.
const show = v => v === 0 ? '0' : Math.abs(v) >= 1000 ? Math.round(v).toLocaleString('en') : v.toPrecision(3);
for (const chart of document.querySelectorAll('figure.chart')) {
  const box = document.createElement('div');
  box.className = 'readout';
  box.hidden = true;
  chart.append(box);
  for (const svg of chart.querySelectorAll('svg')) {
    const [xLow, xHigh, left, right] = svg.dataset.x.split(' ').map(Number);
    const [yLow, yHigh, bottom, top] = svg.dataset.y.split(' ').map(Number);
    const isLog = svg.classList.contains('log'), cursor = svg.querySelector('.cursor');
    const value = y => {
      const t = (y - bottom) / (top - bottom);
      return isLog ? yLow * (yHigh / yLow) ** t : yLow + t * (yHigh - yLow);
    };
    const lines = [...svg.querySelectorAll('path.line')].map(path => ({
      name: path.dataset.name,
      points: path.getAttribute('d').slice(1).split('L').map(p => p.split(' ').map(Number)),
    }));
    svg.addEventListener('pointermove', event => {
      const frame = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / frame.width;
      const at = Math.min(right, Math.max(left, (event.clientX - frame.left) * scale));
      const rows = lines.map(({name, points}) => {
        const near = points.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a);
        return (lines.length > 1 ? name + ': ' : '') + show(value(near[1]));
      });
      const x = xLow + (at - left) / (right - left) * (xHigh - xLow);
      box.replaceChildren(...[svg.dataset.label + ' ' + show(x), ...rows].map(text => {
        const row = document.createElement('div');
        row.textContent = text;
        return row;
      }));
      box.hidden = false;
      cursor.style.visibility = 'visible';
      cursor.setAttribute('x1', at);
      cursor.setAttribute('x2', at);
      const outer = chart.getBoundingClientRect(), spot = event.clientX - outer.left;
      const beside = spot + 14 + box.offsetWidth > outer.width ? spot - 14 - box.offsetWidth : spot + 14;
      box.style.left = Math.max(4, beside) + 'px';
      box.style.top = event.clientY - outer.top - 30 + 'px';
    });
    svg.addEventListener('pointerleave', () => { box.hidden = true; cursor.style.visibility = 'hidden'; });
  }
}
for (const button of document.querySelectorAll('.command button')) {
  button.addEventListener('click', () => {
    getSelection().selectAllChildren(button.previousElementSibling);
    button.textContent = document.execCommand('copy') ? 'copied' : 'selected';
  });
}
// A link to a section that is folded opens it.
const unfold = () => {
  const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
  const folded = target && target.querySelector(':scope > details');
  if (folded) folded.open = true;
};
addEventListener('hashchange', unfold);
unfold();
for (const link of document.querySelectorAll('nav a')) link.addEventListener('click', () => setTimeout(unfold));
