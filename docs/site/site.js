// Names for what the theme makes without one, and tables and code that scroll by the keyboard too.
const name_parts = () => {
  document.querySelectorAll('.md-code__nav').forEach((nav, i) => nav.setAttribute('aria-label', `Code block ${i + 1}`));
  document.querySelectorAll('.md-typeset__scrollwrap').forEach(box => {
    const scrolls = box.scrollWidth > box.clientWidth;
    if (scrolls) box.tabIndex = 0;
    else box.removeAttribute('tabindex');
  });
};
new MutationObserver(name_parts).observe(document.body, {childList: true, subtree: true});
addEventListener('resize', name_parts);
name_parts();
