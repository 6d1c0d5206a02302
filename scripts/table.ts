import Table from 'cli-table3';

/** Returns a table for a terminal: one line of column names, then the rows. */
export function tableOf(columns: string[], rows: (string | null)[][]): string {
  const outline = ['top', 'bottom', 'left', 'right'].flatMap((side) =>
    ['', '-left', '-mid', '-right'].map((part) => [`${side}${part}`, '']),
  );
  const table = new Table({
    head: columns,
    chars: Object.fromEntries(outline),
    style: { head: [], border: [], compact: true },
  });
  table.push(...rows);
  return table.toString();
}
