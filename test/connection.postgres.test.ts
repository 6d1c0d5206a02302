import { execFile, execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:net';
import { tmpdir, userInfo } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import postgres from 'postgres';
import { afterAll, beforeAll, describe, expect, inject, test, vi } from 'vitest';
import { readConnection } from '../scripts/connection.ts';
import {
  freePort,
  idsOfNobody,
  type PostgresServer,
  startPostgres,
} from '../scripts/postgres_server.ts';
import { run } from './support/commands.ts';
import { databaseUrl } from './support/postgres_setup.ts';
import { patience } from './support/sessions.ts';

/** All commands of this package connect as a refresh does. Drizzle-kit connects in its own way. */
const commands = ['npm run refresh', 'drizzle-kit migrate'] as const;

const password = `p@ss:w/o?r#d%&=+ \\'"äß`;

/** A server with a certificate for localhost, which an authority of its own has signed. */
let server: PostgresServer;
let port: string;
/** The folder of its certificates and its Unix socket. */
let folder: string;
const file = (name: string) => join(folder, name);

const openssl = (...args: string[]) => promisify(execFile)('openssl', args, { cwd: folder });

/** Makes a certificate that this authority signs, or the certificate of an authority. */
async function certify(name: string, authority?: string): Promise<void> {
  await openssl(
    ...['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2'],
    ...['-keyout', `${name}.key`, '-out', `${name}.crt`, '-subj', `/CN=${name}`],
    ...(authority ? ['-CA', `${authority}.crt`, '-CAkey', `${authority}.key`] : []),
    ...(authority ? ['-addext', `subjectAltName=DNS:${name}`] : []),
  );
}

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'lead-conversions-connection-'));
  await certify('authority');
  await certify('stranger');
  await certify('localhost', 'authority');
  await certify('member', 'authority');
  await writeFile(
    file('hba'),
    `hostssl all secure 127.0.0.1/32 trust
     hostssl all member 127.0.0.1/32 cert
     host all scram 127.0.0.1/32 scram-sha-256
     host all postgres 127.0.0.1/32 trust
     local all all trust`,
  );
  await chmod(folder, 0o755);
  if (process.getuid?.() === 0) {
    const { uid, gid } = idsOfNobody();
    execFileSync('chown', ['-R', `${uid}:${gid}`, folder]);
  }
  server = await startPostgres({
    ssl: 'on',
    ssl_cert_file: file('localhost.crt'),
    ssl_key_file: file('localhost.key'),
    ssl_ca_file: file('authority.crt'),
    hba_file: file('hba'),
    unix_socket_directories: folder,
  });
  port = new URL(server.url('postgres')).port;
  const client = postgres(server.url('postgres'), { max: 1, onnotice: () => {} });
  for (const role of ['secure', 'member', 'scram']) {
    await client`create role ${client(role)} superuser login`;
  }
  await client.unsafe(`alter role scram password '${password.replaceAll("'", "''")}'`);
  await client`alter role scram set log_statement to 'none'`;
  await client`create database gym`;
  await client.end();
  expect(await run(server.url('gym'), 'npm run migrate')).toMatchObject({ code: 0 });
}, 120_000);
afterAll(async () => {
  await server.remove();
  await rm(folder, { recursive: true });
});

/** What each command says with these settings, for a database that is up to date. */
async function tryAll(url: string, env: Record<string, string> = {}) {
  const said = commands.map(async (command) => {
    const args = command === 'drizzle-kit migrate' ? [] : ['--retries', '0'];
    const { code, stderr } = await run(url, command, args, env);
    return [command, code === 0 ? `success ${stderr}`.trim() : stderr.trim()] as const;
  });
  return Object.fromEntries(await Promise.all(said));
}
const all = (text: unknown) => Object.fromEntries(commands.map((command) => [command, text]));
const success = all('success');

describe('a server with TLS', () => {
  test.each<
    [settings: string, user: string, query: () => string, env?: () => Record<string, string>]
  >([
    ['no sslmode', 'secure', () => ''],
    ['sslmode=allow', 'secure', () => 'sslmode=allow'],
    ['sslmode=require', 'secure', () => 'sslmode=require'],
    ['ssl=true, as other tools write it', 'secure', () => 'ssl=true'],
    ['sslmode=verify-ca', 'secure', () => `sslmode=verify-ca&sslrootcert=${file('authority.crt')}`],
    [
      'sslmode=verify-full',
      'secure',
      () => `sslmode=verify-full&sslrootcert=${file('authority.crt')}`,
    ],
    [
      'channel_binding=require',
      'secure',
      () => `sslmode=require&channel_binding=require&sslrootcert=${file('authority.crt')}`,
    ],
    [
      'a client certificate',
      'member',
      () => `sslcert=${file('member.crt')}&sslkey=${file('member.key')}&sslmode=require`,
    ],
    [
      'environment variables instead of parameters',
      'member',
      () => '',
      () => ({
        PGSSLMODE: 'verify-full',
        PGSSLROOTCERT: file('authority.crt'),
        PGSSLCERT: file('member.crt'),
        PGSSLKEY: file('member.key'),
        PGTARGETSESSIONATTRS: 'primary',
        PGCONNECT_TIMEOUT: '20',
      }),
    ],
  ])('is reached with %s', async (_, user, query, env) => {
    const url = `postgres://${user}@localhost:${port}/gym?${query()}`;
    expect(await tryAll(url, env?.())).toEqual(success);
  });

  test('is not reached without TLS if it requires TLS', async () => {
    const said = await tryAll(`postgres://secure@localhost:${port}/gym?sslmode=disable`);
    expect(said).toEqual(
      all(
        expect.stringMatching(
          /^The database cannot be opened: no pg_hba.conf entry.* no encryption/,
        ),
      ),
    );
  });

  test.each([
    [
      'without the certificate of its authority',
      () => 'sslmode=verify-full',
      'Set sslrootcert to a file with the certificate of the authority that signed it.',
    ],
    [
      'with the certificate of another authority',
      () => `sslmode=verify-ca&sslrootcert=${file('stranger.crt')}`,
      'Set sslrootcert to a file with the certificate of the authority that signed it.',
    ],
    [
      'with the certificate of another authority, even if sslmode=require',
      () => `sslmode=require&sslrootcert=${file('stranger.crt')}`,
      'Set sslrootcert to a file with the certificate of the authority that signed it.',
    ],
    [
      'under a name that is not in its certificate',
      () => `sslmode=verify-full&sslrootcert=${file('authority.crt')}&host=127.0.0.1`,
      'Set host to a name in the certificate, and hostaddr to the address of the server.',
    ],
  ])('is not trusted %s', async (_, query, advice) => {
    const said = await tryAll(`postgres://secure@localhost:${port}/gym?${query()}`);
    expect(said).toEqual(
      all(expect.stringMatching(/^The certificate of the server \S+ is not trusted: [^\n]*$/)),
    );
    expect(said).toEqual(all(expect.stringContaining(advice)));
  });

  test('is reached with an encrypted client key only if sslpassword is right', async () => {
    await openssl(
      ...['rsa', '-aes256', '-passout', 'pass:right', '-in', 'member.key', '-out', 'locked.key'],
    );
    await chmod(file('locked.key'), 0o644);
    const settings = `sslmode=require&sslcert=${file('member.crt')}&sslkey=${file('locked.key')}`;
    const url = `postgres://member@localhost:${port}/gym?${settings}`;
    expect(await tryAll(`${url}&sslpassword=right`)).toEqual(success);
    expect(await tryAll(`${url}&sslpassword=wrong`)).toEqual(
      all(
        expect.stringMatching(
          /^TLS cannot be set up: .*\. Check the files that sslrootcert, sslcert and sslkey name, and sslpassword\.$/,
        ),
      ),
    );
  });

  test('is checked by its host name if hostaddr gives its address', async () => {
    const settings = `sslmode=verify-full&sslrootcert=${file('authority.crt')}&hostaddr=127.0.0.1`;
    expect(await tryAll(`postgres://secure@localhost:${port}/gym?${settings}`)).toEqual(success);
  });
});

test.each([
  ['sslmode=require', 'require'],
  ['sslmode=verify-full', 'verify-full'],
  ['sslmode=require&channel_binding=require', 'verify-full'],
])('a server without TLS is refused without any retry with %s', async (query, mode) => {
  const url = databaseUrl(inject('serverUrl') ?? '', inject('template') ?? '');
  const { host } = new URL(url);
  // Any retry would be in stderr.
  const { code, stderr } = await run(`${url}?${query}`, 'npm run doctor');
  expect({ code, stderr }).toEqual({
    code: 1,
    stderr: `The server ${host} does not offer TLS, which sslmode=${mode} requires. Enable TLS on the server. In a network that you trust, you may set sslmode to disable instead.\n`,
  });
  expect(await tryAll(`${url}?${query}`)).toEqual(all(stderr.trim()));
});

describe('a server is reached', () => {
  test.each<[settings: string, url: () => string, env?: () => Record<string, string>]>([
    ['over a Unix socket', () => `postgres://postgres@/gym?host=${folder}&port=${port}`],
    [
      'over a Unix socket with a percent-encoded path',
      () => `postgres://postgres@${encodeURIComponent(folder)}:${port}/gym`,
    ],
    [
      'over a Unix socket, whatever sslmode says',
      () => `postgres://postgres@/gym?host=${folder}&port=${port}&sslmode=verify-full`,
    ],
    [
      'with special characters in the password',
      () => `postgres://scram:${encodeURIComponent(password)}@localhost:${port}/gym`,
    ],
    [
      'with the password as a parameter',
      () => `postgres://scram@localhost:${port}/gym?password=${encodeURIComponent(password)}`,
    ],
    [
      'with environment variables alone',
      () => 'postgres://',
      () => ({
        PGHOST: 'localhost',
        PGPORT: port,
        PGUSER: 'scram',
        PGPASSWORD: password,
        PGDATABASE: 'gym',
      }),
    ],
    [
      'with a password file',
      () => `postgres://scram@localhost:${port}/gym`,
      () => ({ PGPASSFILE: file('pgpass') }),
    ],
    [
      'with parameters that do not name a server',
      () =>
        `postgres://postgres@localhost:${port}/gym?connect_timeout=10&application_name=nightly&options=-c%20work_mem%3D5MB&target_session_attrs=read-write&client_encoding=UTF8&keepalives_idle=5`,
    ],
  ])('%s', async (_, url, env) => {
    await writeFile(
      file('pgpass'),
      `# names\nlocalhost:1:*:*:wrong\n*:${port}:gym:scram:${password.replace(/[\\:]/g, '\\$&')}\n`,
    );
    expect(await tryAll(url(), env?.())).toEqual(success);
  });

  test('with the options and the application_name of the URL', async () => {
    const client = postgres(server.url('postgres'), { max: 1, onnotice: () => {} });
    try {
      await client`create database held`;
      const url = `postgres://postgres@localhost:${port}/held?application_name=nightly&options=-c%20work_mem%3D5MB`;
      for (const command of ['drizzle-kit migrate', 'npm run refresh'] as const) {
        const running = vi.waitUntil(
          async () => {
            const [session] = await client`
            select application_name from pg_stat_activity
            where datname = 'held' and backend_type = 'client backend'`;
            return session?.application_name;
          },
          { ...patience, interval: 5 },
        );
        const [{ code }, name] = await Promise.all([run(url, command), running]);
        expect({ code, name }).toEqual({ code: 0, name: 'nightly' });
      }
      expect(await run(`${url}%20-c%20nonsense%3D1`, 'drizzle-kit migrate')).toMatchObject({
        code: 1,
        stderr: expect.stringContaining('unrecognized configuration parameter "nonsense"'),
      });
    } finally {
      await client`drop database if exists held with (force)`;
      await client.end();
    }
  });
});

test('parameters of other tools are ignored, and one warning names them', async () => {
  const url = `postgres://postgres@localhost:${port}/gym?pgbouncer=true&schema=app&connection_limit=5`;
  expect(await tryAll(url)).toEqual(
    all(
      'success Warning: DATABASE_URL has parameters that Postgres does not know. They are ignored: pgbouncer, schema, connection_limit.',
    ),
  );
});

describe('a connection fails in time, with an explanation, if the server', () => {
  const listeners: Server[] = [];
  /** A server that gives these answers, the first one to the request for TLS. */
  const listen = async (answer: (count: number) => string | null | undefined) => {
    const listener = createServer((socket) => {
      let count = 0;
      socket
        .on('error', () => {})
        .on('data', () => {
          count += 1;
          const text = answer(count);
          return text === null ? socket.end() : text && socket.write(text);
        });
    });
    listeners.push(listener.listen(0, '127.0.0.1'));
    await once(listener, 'listening');
    return (listener.address() as { port: number }).port;
  };
  afterAll(() => {
    for (const listener of listeners) {
      listener.close();
    }
  });

  test('agrees to TLS, but then sends something else', async () => {
    const port = await listen((count) => (count === 1 ? 'S' : 'HTTP/1.1 400 Bad Request'));
    expect(await tryAll(`postgres://postgres@127.0.0.1:${port}/gym`)).toEqual(
      all(
        expect.stringMatching(
          /^TLS with the server \S+ failed: wrong version number\. Check [^\n]*$/,
        ),
      ),
    );
  });

  test.each<[what: string, answer: (count: number) => string | null | undefined, said: string]>([
    ['never answers', () => undefined, 'did not answer within 2 s (connect_timeout)'],
    ['stops answering', (count) => (count === 1 ? 'N' : undefined), 'CONNECT_TIMEOUT'],
    ['closes the connection', () => null, 'closed the connection before it answered'],
    [
      'closes the connection after one answer',
      (count) => (count === 1 ? 'N' : null),
      'closed the connection before it answered',
    ],
    [
      'is not a Postgres server',
      () => 'HTTP/1.1 400 Bad Request',
      'does not answer like a Postgres server',
    ],
  ])('%s', async (_, answer, said) => {
    const url = `postgres://postgres@127.0.0.1:${await listen(answer)}/gym?connect_timeout=2`;
    expect(await tryAll(url)).toEqual(
      all(
        expect.stringMatching(
          new RegExp(`^The database cannot be reached: .*${said.replace(/[()]/g, '\\$&')}`),
        ),
      ),
    );
  });
});

describe('PgBouncer', () => {
  const isInstalled = spawnSync('pgbouncer', ['--version']).status === 0;

  test.skipIf(!isInstalled && !process.env.CI).each(['session', 'transaction'])(
    'lets the commands work in its %s mode',
    async (mode) => {
      const bouncerPort = await freePort();
      await writeFile(
        file('pgbouncer.ini'),
        `[databases]
* = host=127.0.0.1 port=${port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${bouncerPort}
unix_socket_dir =
auth_type = trust
auth_file = ${file('users')}
pool_mode = ${mode}
`,
      );
      await writeFile(file('users'), '"postgres" ""\n');
      const bouncer = spawn('pgbouncer', [file('pgbouncer.ini')], {
        stdio: 'ignore',
        ...(process.getuid?.() === 0 && idsOfNobody()),
      });
      const client = postgres(server.url('postgres'), { max: 1, onnotice: () => {} });
      try {
        await client`create database bounced`;
        const url = `postgres://postgres@127.0.0.1:${bouncerPort}/bounced`;
        await vi.waitUntil(
          async () => (await run(url, 'npm run migrate', ['--retries', '0'])).code === 0,
          { ...patience, interval: 200 },
        );
        expect(await tryAll(url)).toEqual(success);
        expect(await run(url, 'npm run load', ['test/sample'])).toMatchObject({ code: 0 });
        expect(await run(url, 'npm run refresh')).toMatchObject({ code: 0 });
        expect(await run(url, 'npm run doctor')).toMatchObject({ code: 0 });
      } finally {
        bouncer.kill();
        await once(bouncer, 'exit');
        await client`drop database if exists bounced with (force)`;
        await client.end();
      }
    },
  );
});

describe('a URL', () => {
  const read = (url: string, env: Record<string, string> = {}) =>
    readConnection(url, 'DATABASE_URL', { ...env });

  test('may have an IPv6 address, and leave out everything else', () => {
    const user = userInfo().username;
    expect(read('postgresql://[::1]')).toMatchObject({
      ...{ host: '::1', address: '::1', port: 5432, user, database: user, password: '' },
      ...{ applicationName: 'lead-conversions', timeout: 30, target: 'any', ignored: [] },
      tls: { mode: 'prefer', options: { rejectUnauthorized: false } },
    });
  });

  test('is refused if a file in the home directory cannot be read', async () => {
    await mkdir(join(folder, 'home/.postgresql/root.crt'), { recursive: true });
    vi.stubEnv('HOME', join(folder, 'home'));
    expect(() => read('postgres://host/gym?sslmode=require')).toThrow(
      /^The file \S+root\.crt cannot be read: EISDIR/,
    );
    vi.unstubAllEnvs();
  });

  test('may set the TLS mode twice, and the last one counts', () => {
    expect(read('postgres://host/gym?sslmode=disable&ssl=true').tls?.mode).toBe('require');
    expect(read('postgres://host/gym?ssl=true&sslmode=prefer').tls?.mode).toBe('prefer');
  });

  test('takes precedence over environment variables', () => {
    const env = { PGHOST: 'other', PGPORT: '1', PGUSER: 'u', PGDATABASE: 'd', PGAPPNAME: 'cron' };
    expect(read('postgres://me@host:5/gym?application_name=night', env)).toMatchObject({
      ...{ host: 'host', port: 5, user: 'me', database: 'gym', applicationName: 'night' },
    });
  });

  test.each([
    'postgres://one,two:5432/gym',
    'postgres://one:5432,two:5432/gym',
    'postgres://me:secret@one:5432,two/gym?sslmode=require',
    'postgres://one%2Ctwo/gym',
    'postgres://me@/gym?host=one,two',
    'postgres://one/gym?port=5432,5433',
    'postgres:///gym?hostaddr=10.0.0.1,10.0.0.2',
  ])('with several servers is refused: %s', (url) => {
    expect(() => read(url)).toThrow(/names several servers, but only one is supported/);
  });

  test.each([
    [{ PGHOST: 'one,two' }, 'PGHOST names several servers'],
    [{ PGPORT: '1,2' }, 'PGPORT names several servers'],
    [{ PGSSLMODE: 'on' }, 'PGSSLMODE is "on", which is not one of disable, allow,'],
    [{ PGSERVICE: 'gym' }, 'PGSERVICE is not supported. Remove it.'],
    [{ PGREQUIREAUTH: 'scram-sha-256' }, 'PGREQUIREAUTH is not supported. Remove it.'],
    [{ PGGSSENCMODE: 'require' }, 'PGGSSENCMODE is not supported. Remove it.'],
    [{ PGSSLCERT: '/no/where' }, 'The file /no/where (PGSSLCERT) cannot be read'],
    [{ PGPASSFILE: '/no/where' }, 'The file /no/where (PGPASSFILE) cannot be read'],
    [{ PGSSLMODE: 'verify-ca' }, 'sslmode=verify-ca needs the certificate of an authority'],
    [{ PGCHANNELBINDING: 'require' }, 'PGCHANNELBINDING needs TLS. Set sslmode to verify-full.'],
    [{ PGCHANNELBINDING: 'require', PGHOST: '/run' }, 'A Unix socket has none: remove it.'],
    [{ PGSSLROOTCERT: 'system', PGSSLMODE: 'require' }, 'sslrootcert=system needs sslmode='],
    [{ PGHOST: 'localhost', PGHOSTADDR: '/run' }, 'hostaddr must be the address of a server.'],
    [{ PGSSLMODE: '' }, 'PGSSLMODE is "", which is not one of disable,'],
    [{ PGREQUIRESSL: '1' }, 'PGREQUIRESSL is not supported.'],
    [{ PGSSLROOTCERT: '/dev/null' }, 'The file in sslrootcert has no certificate in PEM format.'],
    [
      { PGTARGETSESSIONATTRS: 'master' },
      'PGTARGETSESSIONATTRS is "master", which is not one of any,',
    ],
    [{ PGPORT: '5432x' }, 'PGPORT is "5432x", which is not a number from 1 to 65535.'],
  ])('is refused with the environment variables %o', (env, message) => {
    expect(() => read('postgres:///gym', env)).toThrow(message);
  });

  test.each([
    ['mysql://host/gym', 'DATABASE_URL is not the URL of a Postgres server.'],
    ['host=localhost dbname=gym', 'DATABASE_URL is not the URL of a Postgres server.'],
    ['postgres://me:100%@host/gym', 'DATABASE_URL has a "%" that is not followed by'],
    ['postgres://me:a/b@host/gym', 'DATABASE_URL cannot be read.'],
    ['postgres://host/gym#1', 'DATABASE_URL has a "#" that is not percent-encoded (%23).'],
    ['postgres://host:port/gym', 'DATABASE_URL cannot be read.'],
    ['postgres://me:1?word@host/gym', 'DATABASE_URL has a "?" or a parameter that cannot be'],
    ['postgres://me:a\tb@host/gym', 'DATABASE_URL has a tab, a line break'],
    ['postgres://host/gym?sslmode=', 'sslmode in DATABASE_URL is empty.'],
    ['postgres://host/gym?ssl', 'ssl in DATABASE_URL is empty.'],
    ['postgres://host/gym?SSLMODE=require', 'SSLMODE in DATABASE_URL has capital letters.'],
    ['postgres://host/gym?SSL=true', 'SSL in DATABASE_URL has capital letters.'],
  ])('that is invalid is refused, and its password is never quoted: %s', (url, message) => {
    expect(() => read(url)).toThrow(message);
    expect(() => read(url)).toThrow(/^((?!me:).)*$/s);
  });
});
