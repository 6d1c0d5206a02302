/** The style of the page, for screens of any width, in light and dark, and for print. */
export const style = `
:root {
  color-scheme: light dark;
  --page: #fff; --card: #f6f7f8; --text: #1b1f23; --muted: #545b62; --line: #d5d9dd;
  --outline: #7d858c; --link: #00598c; --warning: #fff4d6; --warning-line: #9a6700;
  --clients: #0072b2; --leads: #cfd4d8; --type-1: #00446b; --type-2: #d9770a; --type-3: #5d7f1e;
  --shade-0: #fff; --shade-1: #deebf7; --shade-2: #c6dbef; --shade-3: #9ecae1;
  --shade-4: #6baed6; --shade-5: #4292c6; --shade-6: #2171b5; --shade-7: #08519c; --shade-8: #08306b;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --card: #1d2126; --text: #e6e9ec; --muted: #a7afb7; --line: #3a4149;
    --outline: #848d96; --link: #7cc4f0; --warning: #3a2f10; --warning-line: #d9a441;
    --clients: #56b4e9; --leads: #4a525a; --type-1: #3d8fcc; --type-2: #ffc27a; --type-3: #b5e08a;
    --shade-0: #14171a; --shade-1: #0f2f4a; --shade-2: #12436b; --shade-3: #17588c;
    --shade-4: #2374b0; --shade-5: #3d8fcc; --shade-6: #66afe0; --shade-7: #97cbef; --shade-8: #d4eafa;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
}
h1 { margin: 0; font-size: 1.75rem; line-height: 1.2; }
h2 { margin: 1.5rem 0 0.75rem; font-size: 1.35rem; }
h3 { margin: 0 0 0.25rem; font-size: 1.05rem; line-height: 1.3; }
p { margin: 0.25rem 0 0.5rem; max-width: 45rem; }
header p { max-width: none; }
.muted { color: var(--muted); font-size: 0.9rem; }
.warning {
  margin: 0.75rem 0; padding: 0.5rem 0.75rem; max-width: none; background: var(--warning);
  border-left: 0.3rem solid var(--warning-line);
}
fieldset { margin: 1rem 0 0; padding: 0.5rem 0.75rem; border: 1px solid var(--line); border-radius: 0.5rem; }
legend { padding: 0 0.35rem; font-weight: 600; }
label { display: inline-block; margin: 0.15rem 1.25rem 0.15rem 0; padding: 0.2rem 0; }
input { width: 1.1rem; height: 1.1rem; margin: 0 0.3rem 0 0; vertical-align: -0.15rem; accent-color: var(--clients); }
:focus-visible { outline: 3px solid var(--clients); outline-offset: 2px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, max(9.25rem, 20%)), 1fr)); gap: 0.75rem; margin: 0; }
.tiles div { padding: 0.75rem; background: var(--card); border: 1px solid var(--line); border-radius: 0.5rem; }
.tiles + .muted { margin: 0.75rem 0; }
.tiles dt { font-weight: 600; }
.tiles dd { margin: 0; color: var(--muted); font-size: 0.85rem; }
.tiles dd.value { color: var(--text); font-size: 1.4rem; font-weight: 600; line-height: 1.3; overflow-wrap: normal; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 0.75rem; margin-top: 0.75rem; }
.card { min-width: 0; padding: 0.75rem; background: var(--page); border: 1px solid var(--line); border-radius: 0.5rem; }
svg { display: block; width: 100%; max-width: 30rem; height: auto; margin: 0.5rem 0; }
svg.definitions { position: absolute; width: 0; height: 0; margin: 0; }
.stripes { stroke: var(--clients); stroke-width: 2.5; }
summary { width: fit-content; padding: 0.15rem 0; color: var(--link); cursor: pointer; }
.wide, .card:has(details[open]) { grid-column: 1 / -1; }
.note { min-width: 0; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.scroll {
  max-height: 32rem; overflow: auto; background:
    linear-gradient(90deg, var(--page) 30%, transparent) left / 3rem 100% local no-repeat,
    linear-gradient(270deg, var(--page) 30%, transparent) right / 3rem 100% local no-repeat,
    linear-gradient(90deg, var(--outline), transparent) left / 0.6rem 100% scroll no-repeat,
    linear-gradient(270deg, var(--outline), transparent) right / 0.6rem 100% scroll no-repeat;
}
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
caption { padding: 0.25rem 0; color: var(--muted); text-align: left; }
th, td { padding: 0.2rem 0.6rem 0.2rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; }
td, th { min-width: 3rem; overflow-wrap: break-word; }
tbody th { min-width: 7rem; max-width: 24rem; }
th.number, td.number { text-align: right; }
td.number { white-space: nowrap; }
caption { white-space: normal; }
pre { overflow: auto; padding: 0.5rem; background: var(--card); font-size: 0.8rem; line-height: 1.35; }
footer { margin-top: 2rem; border-top: 1px solid var(--line); }
@media print {
  :root { color-scheme: light; }
  body { padding: 0; max-width: none; font-size: 10pt; }
  * { print-color-adjust: exact; }
  .card, .tiles div { break-inside: avoid; }
  .scroll { max-height: none; overflow: visible; background: none; }
  table { font-size: 7.5pt; }
  th, td { padding-right: 0.3rem; min-width: 0; }
  tbody th { min-width: 4rem; }
  fieldset, .numbers summary, details.numbers:not([open]), .sql { display: none; }
  .card:has(table) { grid-column: 1 / -1; }
  .card:has(details.numbers:not([open])) { grid-column: auto; }
}
`;
