import { getViewName, type SQL } from 'drizzle-orm';
import { getMaterializedViewConfig, PgDialect, type PgMaterializedView } from 'drizzle-orm/pg-core';
import { viewsInOrder } from '../views/refresh.ts';
import type { Session } from '../views/session.ts';

/** The SELECT that a view is declared with. */
export const declaredText = (view: PgMaterializedView): string => {
  const { query } = getMaterializedViewConfig(view);
  return query ? new PgDialect().sqlToQuery(query).sql : '';
};

/**
 * The text of a view as a query on the input tables alone: the views before it that it reads
 * are CTEs with the given texts, rather than what they hold. (A transaction that only reads
 * may not create a temporary table.)
 */
export function standalone(text: string, textsBefore: string[]): string {
  const before = viewsInOrder
    .slice(0, textsBefore.length)
    .map((view, index) => ({ name: getViewName(view), text: textsBefore[index] ?? '' }))
    .filter(({ name }) => referenceTo(name).test(text));
  const body = before.reduce(
    (changed, { name }) => changed.replaceAll(referenceTo(name), `"${name}"`),
    text.replace(/;\s*$/, ''),
  );
  const ctes = before.map(({ name, text }) => `"${name}" as (\n${text}\n)`);
  return ctes.length === 0 ? body : `with ${ctes.join(',\n')}\nselect * from (\n${body}\n) as rows`;
}

const referenceTo = (name: string) => new RegExp(`"?\\bpublic"?\\."?${name}\\b"?`, 'g');

/** Runs a query that Drizzle's builder has no form for. Drivers differ in what they return. */
export async function rowsOf<Row>(tx: Session, query: SQL): Promise<Row[]> {
  const result: unknown = await tx.execute(query);
  return (Array.isArray(result) ? result : (result as { rows: Row[] }).rows) as Row[];
}
