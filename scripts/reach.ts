import { TLSSocket } from 'node:tls';
import { sql } from 'drizzle-orm';
import { openDatabase } from './database.ts';
import { explain } from './failure.ts';

// Connects to the database that DATABASE_URL names, and prints as JSON whether the connection is
// over TLS. drizzle.config.ts runs this script because it cannot wait for a connection itself.

let isOverTls = false;
try {
  const database = await openDatabase(undefined, {
    onWarning: (text) => console.error(`Warning: ${text}`),
    onConnect: (socket) => {
      isOverTls = socket instanceof TLSSocket;
    },
  });
  await database.db.execute(sql`select 1`).finally(() => database.close());
  console.log(JSON.stringify(isOverTls));
} catch (error) {
  console.error(explain(error));
  process.exitCode = 1;
}
