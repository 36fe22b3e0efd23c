// A page that is served while runs train: asks for news, and reloads with what was open still open.
const remembered = () => [...document.querySelectorAll('details')].map(one => one.open ? 1 : 0).join('');
const before = sessionStorage.getItem('unveil-open');
if (before) {
  [...document.querySelectorAll('details')].forEach((one, i) => { if (i < before.length) one.open = before[i] === '1'; });
  scrollTo(0, Number(sessionStorage.getItem('unveil-scroll')));
}
setInterval(async () => {
  try {
    const {state} = await (await fetch('/state')).json();
    if (state === document.documentElement.dataset.state || document.querySelector('dialog[open]')) return;
    sessionStorage.setItem('unveil-open', remembered());
    sessionStorage.setItem('unveil-scroll', String(scrollY));
    location.reload();
  } catch (error) { /* the command has ended: the page stays as it is */ }
}, 3000);
