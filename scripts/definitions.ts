import { getViewName, type SQL } from 'drizzle-orm';
import { getMaterializedViewConfig, PgDialect, type PgMaterializedView } from 'drizzle-orm/pg-core';
import { viewsInOrder } from '../views/refresh.ts';
import type { Session } from '../views/session.ts';

/** Returns the SELECT with which a view is declared. */
export const declaredText = (view: PgMaterializedView): string => {
  const { query } = getMaterializedViewConfig(view);
  return query ? new PgDialect().sqlToQuery(query).sql : '';
};

/**
 * Returns the text of a view as a query on the input tables only. References to earlier views
 * become CTEs with the given texts, so the stored rows of those views are not read. (Temporary
 * tables would not do: a read-only transaction may not create them.)
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

/**
 * Returns a text without casts to text. A stored definition also has the casts that are implied in
 * the declared text.
 */
export const withoutCasts = (text: string): string =>
  inCode(text, (code) => code.replace(/::(text|character varying|varchar)\b/g, ''));

/** Changes the code in an SQL text, but not its comments and strings. */
const inCode = (text: string, change: (code: string) => string): string =>
  text
    .split(/('(?:[^']|'')*'|--[^\n]*|\/\*[\s\S]*?\*\/)/)
    .map((part, index) => (index % 2 === 0 ? change(part) : part))
    .join('');

/**
 * Replaces references to a view in `public` with a CTE. The CTE gets the alias of the reference, or
 * else the name of the view.
 */
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

/**
 * Runs a query that Drizzle's builder cannot express, and returns its rows. Drivers return results
 * of different shapes.
 */
export async function rowsOf<Row>(tx: Session, query: SQL): Promise<Row[]> {
  const result: unknown = await tx.execute(query);
  return (Array.isArray(result) ? result : (result as { rows: Row[] }).rows) as Row[];
}
