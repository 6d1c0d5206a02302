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
    .map((view, index) => ({ name: getViewName(view), text: textsBefore[index] ?? '' }));
  let body = text.replace(/;\s*$/, '');
  const ctes: string[] = [];
  for (const { name, text: textOfOther } of before) {
    const cte = `lead_conversions_${name}`;
    const replaced = inCode(body, (code) => replaceReferences(code, name, cte));
    if (replaced !== body) {
      ctes.push(`"${cte}" as (\n${textOfOther}\n)`);
      body = replaced;
    }
  }
  return ctes.length === 0
    ? body
    : `with ${ctes.join(',\n')}\nselect * from (\n${body}\n) as lead_conversions_rows`;
}

/** A text without casts to text, which a stored definition has where they are implied. */
export const withoutCasts = (text: string): string =>
  inCode(text, (code) => code.replace(/::(text|character varying|varchar)\b/g, ''));

/** Changes what is code in an SQL text, and neither a comment nor a string. */
const inCode = (text: string, change: (code: string) => string): string =>
  text
    .split(/('(?:[^']|'')*'|--[^\n]*|\/\*[\s\S]*?\*\/)/)
    .map((part, index) => (index % 2 === 0 ? change(part) : part))
    .join('');

/** Has references to a view in `public` name a CTE, under the alias that they have, or the name of the view. */
function replaceReferences(code: string, view: string, cte: string): string {
  const name = `"?public"?\\s*\\.\\s*"?${view}\\b"?`;
  const notAlias =
    'on|using|where|cross|inner|left|right|full|natural|join|group|having|window|order|union|intersect|except|limit|offset|fetch|for|tablesample';
  return code
    .replace(new RegExp(`${name}(?=\\s*\\.)`, 'gi'), () => `"${view}"`)
    .replace(
      new RegExp(`${name}(\\s+(?:as\\s+)?(?!(?:${notAlias})\\b)["a-z_])?`, 'gi'),
      (_, alias: string | undefined) => `"${cte}"${alias ?? ` as "${view}"`}`,
    );
}

/** Runs a query that Drizzle's builder has no form for. Drivers differ in what they return. */
export async function rowsOf<Row>(tx: Session, query: SQL): Promise<Row[]> {
  const result: unknown = await tx.execute(query);
  return (Array.isArray(result) ? result : (result as { rows: Row[] }).rows) as Row[];
}
