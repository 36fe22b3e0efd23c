"""The style of a page, and its script, which a page can do without."""

from __future__ import annotations

from itertools import product

import numpy as np

from .pictures import colours

_RAMP = ",".join(f"rgb({r} {g} {b})" for r, g, b in colours(np.linspace(0, 1, 9)).tolist())

_VISIBLE = {(0, 0), (28, 14), (14, 28)}  # the patches of the logo that are not hidden
_PATCHES = [
    f'<rect class="{"" if (x, y) in _VISIBLE else "f"}" x="{x}" y="{y}" width="12" height="12"/>'
    for y, x in product((0, 14, 28), repeat=2)
]
LOGO = f'<svg class="logo" viewBox="0 0 40 40" aria-hidden="true">{"".join(_PATCHES)}</svg>'

# Series colours: Okabe and Ito's palette, which the colour-blind tell apart, darkened or lightened for each ground.
PALETTE = """
:root{--bg:#fbfaf8;--card:#fff;--ink:#1d1f24;--soft:#666b76;--line:#e4e1db;--faint:#f2f0ec;
--ok:#1a7f4b;--note:#3767a6;--warning:#a86400;--problem:#b3261e;
--s0:#0067a5;--s1:#c44e00;--s2:#00805f;--s3:#a8487f;--s4:#8a6d00;--s5:#2f8fc4;--s6:#44474f;--base:#b9b6ae}
@media (prefers-color-scheme:dark){:root{--bg:#15171b;--card:#1c1f24;--ink:#e9e7e2;--soft:#9a9ea8;--line:#30343b;
--faint:#24272d;--ok:#5cc98f;--note:#84b3ee;--warning:#eeb055;--problem:#ff8a80;
--s0:#5ab0ee;--s1:#f5894a;--s2:#3fc6a0;--s3:#e58fc2;--s4:#e2c044;--s5:#9bd4f5;--s6:#c3c6cf;--base:#5d626c}}
"""
MARKS = """
.s0{--c:var(--s0)}.s1{--c:var(--s1)}.s2{--c:var(--s2)}.s3{--c:var(--s3)}.s4{--c:var(--s4)}.s5{--c:var(--s5)}
.s6{--c:var(--s6)}.base{--c:var(--base)}
.line{fill:none;stroke:var(--c);stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}
.raw{fill:none;stroke:var(--c);stroke-width:.8;opacity:.3}.line.dash{stroke-dasharray:6 5}.dot{fill:var(--c)}
"""
_PAGE = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",sans-serif;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
header,main{max-width:1120px;margin:0 auto;padding:0 24px}
header{display:flex;gap:18px;align-items:center;padding-top:44px;padding-bottom:22px}
.logo{width:52px;flex:none;fill:var(--s0)}.logo .f{fill:var(--line)}
h1{font-size:clamp(1.5rem,4.5vw,2.15rem);line-height:1.15;letter-spacing:-.02em;margin:0}
h2{font-size:1.3rem;letter-spacing:-.01em;margin:0 0 2px}h3{font-size:1rem;margin:26px 0 8px}
p{margin:0 0 10px}.kind{color:var(--soft);font-size:.8rem;letter-spacing:.02em;margin:0}
.under,.lead,.aside,.remark{color:var(--soft)}.under{margin:4px 0 0}.lead{max-width:72ch;margin-bottom:16px}
.aside{font-weight:400;font-size:.85em}.remark{font-size:.88rem;max-width:80ch;margin-top:12px}
section{margin:0 0 52px}article>h3:first-child{margin-top:0}section:not(.health)>article+article{margin-top:34px}
.spot{display:inline-block;width:.68em;height:.68em;border-radius:50%;background:var(--c);margin-right:.45em}
.health{display:grid;gap:16px;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));margin-bottom:28px}
.verdict{background:var(--card);border:1px solid var(--line);border-left:5px solid var(--v);border-radius:10px;
padding:18px 22px}
.ok{--v:var(--ok)}.note{--v:var(--note)}.warning{--v:var(--warning)}.problem{--v:var(--problem)}
.headline{font-size:1.22rem;font-weight:650;letter-spacing:-.01em;color:var(--v);margin:0 0 6px}
.verdict ul{list-style:none;margin:0;padding:0}.verdict li{display:flex;gap:12px;padding:5px 0;align-items:baseline}
.verdict em{font-style:normal;color:var(--soft)}
.level{flex:none;width:66px;font-size:.8rem;font-weight:600;color:var(--v)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));border:1px solid var(--line);
border-radius:10px;background:var(--line);gap:1px;overflow:hidden}
.tiles>div{background:var(--card);padding:13px 18px}
dt{color:var(--soft);font-size:.8rem}dd{margin:0}
.tiles dd{font-size:1.5rem;font-weight:600;letter-spacing:-.02em;line-height:1.3}
.tiles small{display:block;color:var(--soft);font-size:.8rem;font-weight:400;letter-spacing:0;min-height:1.5em}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(46%,200px),1fr));gap:12px 24px;margin:0 0 18px}
.command{display:flex;align-items:stretch;background:var(--faint);border-radius:8px;margin:0 0 16px;overflow:hidden}
pre{margin:0;padding:12px 16px;flex:1;white-space:pre-wrap;font:13.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,
monospace}
button{border:0;border-left:1px solid var(--line);background:none;color:var(--soft);font:inherit;font-size:.85rem;
padding:0 16px;cursor:pointer}button:hover{color:var(--ink)}
summary{cursor:pointer;color:var(--soft);margin:6px 0}details .facts{padding-top:8px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{text-align:right;padding:7px 14px 7px 0;border-bottom:1px solid var(--line);vertical-align:top;font-weight:400}
td,.compare th{overflow-wrap:normal}thead th{color:var(--soft);font-size:.82rem}th:first-child{text-align:left}
.words th,.words td{text-align:left;overflow-wrap:break-word}
.compare tbody th{color:var(--soft)}.compare thead th{color:var(--ink);
font-weight:600;font-size:.92rem;min-width:84px}td strong{font-weight:700;color:var(--ok)}
.charts{display:grid;gap:18px;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr))}
figure{margin:0}.chart{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 14px 8px;
position:relative;max-width:640px}
.chart figcaption{display:flex;gap:10px;align-items:baseline;padding:0 4px}.chart figcaption strong{font-weight:600}
.chart .switch{margin-left:auto;color:var(--soft);font-size:.82rem;cursor:pointer;white-space:nowrap}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;font-size:.82rem;padding:2px 4px}
.key i{display:inline-block;width:18px;border-top:3px solid var(--c);vertical-align:middle;margin-right:6px}
.key i.dash{border-top-style:dashed}
.key .ramp{width:110px;height:10px;border:0;border-radius:3px;margin:0 4px;background:linear-gradient(90deg,RAMP)}
.chart svg{display:block;width:100%;height:auto;overflow:visible}
.chart svg~svg,.chart:has(.switch :checked) svg{display:none}.chart:has(.switch :checked) svg~svg{display:block}
.chart text{font-size:14px;fill:var(--soft)}
.grid{stroke:var(--line);stroke-width:1}.axis,.tick{stroke:var(--soft);stroke-width:1}
.cursor{stroke:var(--soft);stroke-width:1;visibility:hidden}
.readout{position:absolute;pointer-events:none;background:var(--ink);color:var(--bg);border-radius:6px;padding:5px 10px;
font-size:.8rem;line-height:1.45;white-space:nowrap;z-index:2}
.gallery{display:grid;gap:8px}.strip{display:grid;grid-template-columns:repeat(var(--columns),minmax(0,1fr));gap:8px}
.strip{max-width:calc(var(--columns) * 152px)}
.strip figure{display:flex;flex-direction:column}.gallery:not(.near,.rows) figcaption{order:-1}
.strip img,.gone{display:block;width:100%;height:auto;border-radius:5px}.pixels{image-rendering:pixelated}
.gone{aspect-ratio:1;background:var(--faint);color:var(--soft);font-size:.78rem;display:grid;place-items:center}
.strip figcaption{font-size:.78rem;color:var(--soft);line-height:1.35;padding:3px 0 2px;text-align:center}
.gallery:not(.near,.rows) .strip:not(:first-child) figcaption{position:absolute;clip-path:inset(50%);width:1px;
height:1px;overflow:hidden}
.cell{display:block;text-align:center;border-radius:3px;min-width:40px}.cka td,.cka th{padding:2px;border:0;
text-align:center;vertical-align:middle}.scroll+.charts{margin-top:18px}
.rowname{display:grid;place-items:center end;padding-right:8px;color:var(--soft);font-size:.85rem}
.classes{font-size:.82rem;color:var(--soft);margin:6px 0 0}.classes strong{color:var(--ink);margin-right:10px}
.classes span{margin-right:14px;white-space:nowrap}.swatch{display:inline-block;width:.8em;height:.8em;
border-radius:2px;margin-right:.4em}.key .ramp{display:inline-block;vertical-align:middle}
.near figure:first-child img{box-shadow:0 0 0 3px var(--s0)}
.near figure:first-child figcaption{font-weight:600;color:var(--ink)}
.same figcaption{color:var(--ok)}
.protocol{margin-bottom:26px}.bars{max-width:760px;margin-bottom:12px}.metric{margin:0 0 4px;color:var(--soft);
font-size:.85rem}
.bars>div{display:grid;grid-template-columns:minmax(90px,190px) 1fr 68px;gap:12px;align-items:center;padding:3px 0}
.bar{background:var(--faint);border-radius:4px;height:16px;overflow:hidden}.bar i{display:block;height:100%;
background:var(--c);border-radius:4px}.who{font-size:.9rem}.value{text-align:right;font-weight:600;font-size:.92rem}
@media (max-width:600px){header,main{padding-left:16px;padding-right:16px}header{padding-top:26px;gap:14px}
.logo{width:40px}section{margin-bottom:40px}.verdict{padding:14px 16px}
.verdict li{flex-direction:column;gap:0}.tiles{grid-template-columns:1fr 1fr}.strip{grid-template-columns:repeat(4,1fr)}
.gallery{gap:16px}.gallery:not(.near,.rows) .strip:not(:first-child) figcaption{position:static;clip-path:none;
width:auto;height:auto}.bars>div{grid-template-columns:96px 1fr 62px;gap:8px}
.words td,.words th{font-size:.85rem}}
@media print{:root{--bg:#fff;--card:#fff;--ink:#000;--soft:#555;--line:#ccc;--faint:#eee;--ok:#1a7f4b;--note:#3767a6;
--warning:#a86400;--problem:#b3261e;--s0:#0067a5;--s1:#c44e00;--s2:#00805f;--s3:#a8487f;--s4:#8a6d00;--s5:#2f8fc4;
--s6:#44474f;--base:#b9b6ae}body{font-size:11px}button,.switch,.readout{display:none}
figure,tr,.strip,.verdict,.tiles{break-inside:avoid}h2,h3{break-after:avoid}section{margin-bottom:24px}
.charts{grid-template-columns:1fr 1fr}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
STYLE = (PALETTE + MARKS + _PAGE).replace("RAMP", _RAMP)

# Reads values back out of the drawn paths, so that nothing is in the page twice.
SCRIPT = """
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
"""
