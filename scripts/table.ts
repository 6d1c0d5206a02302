import Table from 'cli-table3';

/** A table for a terminal: a line of column names, and the rows under it. */
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
