import { existsSync, readFileSync } from 'node:fs';
import { connect, isIP, type Socket } from 'node:net';
import { homedir, userInfo } from 'node:os';
import { join } from 'node:path';
import { type ConnectionOptions, connect as connectTls } from 'node:tls';

/** How to reach a database on a server. */
export interface Connection {
  /** The server's name, its address, or the folder of its Unix socket. */
  host: string;
  /** Where to connect to: `hostaddr` if that is given, otherwise `host`. */
  address: string;
  port: number;
  database: string;
  user: string;
  password: string;
  applicationName: string;
  /** Command-line options for the session, such as `-c work_mem=64MB`. */
  options: string | undefined;
  /** How long to wait for a connection, in seconds. 0 waits forever. */
  timeout: number;
  /** Whether TLS is wanted, and what it checks. Undefined without TLS, as over a Unix socket. */
  tls: { mode: Mode; options: ConnectionOptions } | undefined;
  /** Which kind of server is required, see `target_session_attrs` in the manual. */
  target: Target;
  /** Parameters that were ignored. */
  ignored: string[];
}

const modes = ['disable', 'allow', 'prefer', 'require', 'verify-ca', 'verify-full'] as const;
type Mode = (typeof modes)[number];

const targets = ['any', 'read-write', 'read-only', 'primary', 'standby', 'prefer-standby'] as const;
type Target = (typeof targets)[number];

/**
 * The supported parameters, each with the environment variable that counts if the URL does not give
 * it.
 */
const variables = {
  host: 'PGHOST',
  hostaddr: 'PGHOSTADDR',
  port: 'PGPORT',
  dbname: 'PGDATABASE',
  user: 'PGUSER',
  password: 'PGPASSWORD',
  passfile: 'PGPASSFILE',
  application_name: 'PGAPPNAME',
  options: 'PGOPTIONS',
  connect_timeout: 'PGCONNECT_TIMEOUT',
  target_session_attrs: 'PGTARGETSESSIONATTRS',
  channel_binding: 'PGCHANNELBINDING',
  sslmode: 'PGSSLMODE',
  sslrootcert: 'PGSSLROOTCERT',
  sslcert: 'PGSSLCERT',
  sslkey: 'PGSSLKEY',
  sslcrl: 'PGSSLCRL',
  sslpassword: undefined,
  sslsni: 'PGSSLSNI',
  ssl_min_protocol_version: 'PGSSLMINPROTOCOLVERSION',
  ssl_max_protocol_version: 'PGSSLMAXPROTOCOLVERSION',
} as const;
type Parameter = keyof typeof variables;

/**
 * Parameters for features that are not supported here. They are refused unless they have one of the
 * harmless values.
 */
const unsupported: Record<string, { variable: string | undefined; harmless: string[] }> = {
  service: { variable: 'PGSERVICE', harmless: [] },
  replication: { variable: undefined, harmless: ['false', 'off', 'no', '0'] },
  requiressl: { variable: 'PGREQUIRESSL', harmless: ['0'] },
  require_auth: { variable: 'PGREQUIREAUTH', harmless: [] },
  requirepeer: { variable: 'PGREQUIREPEER', harmless: [] },
  gssencmode: { variable: 'PGGSSENCMODE', harmless: ['disable', 'prefer'] },
  sslcertmode: { variable: 'PGSSLCERTMODE', harmless: ['allow'] },
  sslcrldir: { variable: 'PGSSLCRLDIR', harmless: [] },
  sslnegotiation: { variable: 'PGSSLNEGOTIATION', harmless: ['postgres'] },
};

/**
 * Parameters of libpq that change nothing here. They are about networks, text encoding and several
 * hosts.
 */
const harmless = [
  ...['client_encoding', 'fallback_application_name', 'load_balance_hosts', 'sslcompression'],
  ...['keepalives', 'keepalives_idle', 'keepalives_interval', 'keepalives_count'],
  ...['tcp_user_timeout', 'krbsrvname', 'gsslib', 'gssdelegation'],
];

const defaultTimeout = 30;

/**
 * Reads a URL as libpq, the library of psql, does. Its environment variables count for whatever the
 * URL does not give. If neither gives a host, it is `localhost`.
 * https://www.postgresql.org/docs/16/libpq-connect.html#LIBPQ-PARAMKEYWORDS
 *
 * Throws an Error that says what to do if the URL or a parameter cannot be understood, or asks for
 * something that is not supported. No message contains the URL, which may hold a password.
 */
export function readConnection(
  text: string,
  variable = 'DATABASE_URL',
  env: NodeJS.ProcessEnv = process.env,
): Connection {
  const given = readUrl(text, variable);
  /** Returns the value of a parameter, and where it comes from. */
  const find = (name: string, from: string | undefined) => {
    const value = given.get(name) || (from && env[from]) || undefined;
    return { value, source: given.get(name) ? `${name} in ${variable}` : String(from) };
  };
  const read = (name: Parameter) => find(name, variables[name]).value;
  const oneOf = <Value extends string>(
    name: Parameter,
    values: readonly Value[],
    preset: Value,
  ): Value => {
    const from = variables[name];
    const { value = (from && env[from]) ?? preset, source } = find(name, from);
    if (!values.includes(value as Value)) {
      throw new Error(
        `${source} is ${JSON.stringify(value)}, which is not one of ${values.join(', ')}.`,
      );
    }
    return value as Value;
  };

  for (const [name, { variable: from, harmless }] of Object.entries(unsupported)) {
    const { value, source } = find(name, from);
    if (value !== undefined && !harmless.includes(value)) {
      throw new Error(`${source} is not supported. Remove it.`);
    }
  }
  for (const name of ['host', 'hostaddr', 'port'] as const) {
    const { value, source } = find(name, variables[name]);
    if (value?.includes(',')) {
      throw new Error(
        `${source} names several servers, but only one is supported. Name the primary server, or a proxy in front of it.`,
      );
    }
  }

  const host = read('host') ?? read('hostaddr') ?? 'localhost';
  const address = read('hostaddr') ?? host;
  const port = readNumber(find('port', variables.port), 5432, 1, 65_535);
  const user = read('user') ?? userInfo().username;
  const database = read('dbname') ?? user;
  const isSocket = address.startsWith('/');
  if (isSocket && address !== host) {
    throw new Error(
      'hostaddr must be the address of a server. To use a Unix socket, set host to its folder.',
    );
  }
  return {
    ...{ host, address, port, database, user },
    password: read('password') ?? readPassword([`${port}`, database, user]) ?? '',
    applicationName: read('application_name') ?? 'lead-conversions',
    options: read('options'),
    timeout: readNumber(find('connect_timeout', variables.connect_timeout), defaultTimeout, 0),
    tls: readTls(),
    target: oneOf('target_session_attrs', targets, 'any'),
    ignored: [...given.keys()].filter(
      (name) => !(name in variables || name in unsupported || harmless.includes(name)),
    ),
  };

  function readTls(): Connection['tls'] {
    const binding = oneOf('channel_binding', ['disable', 'prefer', 'require'], 'prefer');
    const asked = oneOf(
      'sslmode',
      modes,
      read('sslrootcert') === 'system' ? 'verify-full' : 'prefer',
    );
    if (binding === 'require' && (isSocket || ['disable', 'allow', 'prefer'].includes(asked))) {
      throw new Error(
        `${find('channel_binding', variables.channel_binding).source} needs TLS. ${isSocket ? 'A Unix socket has none: remove it' : 'Set sslmode to verify-full'}.`,
      );
    }
    if (isSocket) {
      return;
    }
    // Channel binding proves that the TLS connection ends at the server itself. A full check of the
    // certificate proves the same, and the driver supports only that.
    const mode = binding === 'require' ? 'verify-full' : asked;
    const isSystem = read('sslrootcert') === 'system';
    if (isSystem && mode !== 'verify-full') {
      throw new Error(
        `sslrootcert=system needs sslmode=verify-full, not ${mode}, because anybody can get a certificate from a public authority.`,
      );
    }
    if (mode === 'disable') {
      return;
    }
    const file = (name: 'sslrootcert' | 'sslcert' | 'sslkey' | 'sslcrl', usual: string) => {
      const { value, source } = find(name, variables[name]);
      return readFile(value ?? inHome('.postgresql', usual), value && source);
    };
    const ca = isSystem ? undefined : file('sslrootcert', 'root.crt');
    if (ca !== undefined && !ca.includes('-----BEGIN')) {
      throw new Error('The file in sslrootcert has no certificate in PEM format.');
    }
    if (mode === 'verify-ca' && ca === undefined) {
      throw new Error(
        'sslmode=verify-ca needs the certificate of an authority: set sslrootcert to its file. If the certificate of the server is from a public authority, set sslmode to verify-full instead.',
      );
    }
    const isVerified = mode.startsWith('verify') || (mode === 'require' && ca !== undefined);
    const cert = file('sslcert', 'postgresql.crt');
    const versions = ['TLSv1', 'TLSv1.1', 'TLSv1.2', 'TLSv1.3'] as const;
    const options: ConnectionOptions = {
      ...{ host, ca, cert },
      key: cert && file('sslkey', 'postgresql.key'),
      passphrase: read('sslpassword'),
      crl: isVerified ? file('sslcrl', 'root.crl') : undefined,
      rejectUnauthorized: isVerified,
      ...(isVerified && mode !== 'verify-full' && { checkServerIdentity: () => undefined }),
      ...(read('sslsni') !== '0' && !isIP(host) && { servername: host }),
      minVersion: oneOf('ssl_min_protocol_version', versions, 'TLSv1.2'),
      ...(read('ssl_max_protocol_version') && {
        maxVersion: oneOf('ssl_max_protocol_version', versions, 'TLSv1.3'),
      }),
    };
    return { mode, options };
  }

  /** Returns the password in the first line of the password file that matches. */
  function readPassword(wanted: string[]): string | undefined {
    const { value, source } = find('passfile', variables.passfile);
    const lines = readFile(value ?? inHome('.pgpass'), value && source)?.split(/\r?\n/);
    return lines
      ?.filter((line) => !line.startsWith('#'))
      .map((line) =>
        [...line.matchAll(/((?:\\.|[^\\:])*)(?::|$)/g)].map(([, field = '']) => ({
          isAny: field === '*',
          text: field.replace(/\\(.)/g, '$1'),
        })),
      )
      .find(
        (fields) =>
          fields[4] !== undefined &&
          (fields[0]?.isAny || [host, isSocket && 'localhost'].includes(fields[0]?.text ?? '')) &&
          wanted.every((text, at) => fields[at + 1]?.isAny || fields[at + 1]?.text === text),
      )?.[4]?.text;
  }
}

/** Returns the parameters that a URL gives, including those in its user, host, port and path. */
function readUrl(text: string, variable: string): Map<string, string> {
  const wrong = (what: string) =>
    new Error(
      `${variable} ${what}. Set it to postgres://USER:PASSWORD@HOST:PORT/DATABASE, with special characters percent-encoded.`,
    );
  const trimmed = text.trim();
  if (/\p{Cc}/u.test(trimmed)) {
    throw wrong('has a tab, a line break or another control character');
  }
  const authority = /^postgres(?:ql)?:\/\/([^/?#]*)/.exec(trimmed)?.[1];
  if (authority === undefined) {
    throw wrong('is not the URL of a Postgres server');
  }
  if (/,/.test(authority.slice(authority.lastIndexOf('@') + 1))) {
    throw new Error(
      `${variable} names several servers, but only one is supported. Name the primary server, or a proxy in front of it.`,
    );
  }
  // libpq accepts a user without a host, because the host may be a parameter. `URL` does not.
  const url = trimmed.replace(/^(\w+:\/\/[^/?#]*@)(?=[/?]|$)/, `$1${noHost}`);
  if (!URL.canParse(url)) {
    throw wrong('cannot be read');
  }
  const { username, password, hostname, port, pathname, search, hash } = new URL(url);
  if (hash !== '') {
    throw wrong('has a "#" that is not percent-encoded (%23)');
  }
  const decode = (part: string) => {
    try {
      return decodeURIComponent(part);
    } catch {
      throw wrong('has a "%" that is not followed by two hexadecimal digits');
    }
  };
  const given = new Map<string, string>();
  const parts = {
    ...{ user: username, password, port, dbname: pathname.slice(1) },
    host: hostname === noHost ? '' : hostname.replace(/^\[(.*)\]$/, '$1'),
  };
  for (const [name, part] of Object.entries(parts)) {
    if (part !== '') {
      given.set(name, decode(part));
    }
  }
  for (const parameter of search.slice(1).split('&').filter(Boolean)) {
    const [key = '', ...rest] = parameter.split('=');
    const [name, value] = [decode(key), decode(rest.join('='))];
    if (!/^\w+$/.test(name)) {
      throw wrong('has a "?" or a parameter that cannot be read');
    }
    const lower = name.toLowerCase();
    const isCapital =
      name !== lower && (lower === 'ssl' || lower in variables || lower in unsupported);
    if (isCapital || (value === '' && /^(ssl|channel_binding)/.test(name))) {
      throw new Error(
        `${name} in ${variable} ${isCapital ? 'has capital letters. Write it without' : 'is empty. Give it a value, or leave it out'}.`,
      );
    }
    // `ssl` is what other drivers call the mode. libpq, too, reads ssl=true as sslmode=require.
    const mode = { true: 'require', '1': 'require', false: 'disable', '0': 'disable' }[value];
    given.set(name === 'ssl' ? 'sslmode' : name, name === 'ssl' ? (mode ?? value) : value);
  }
  return given;
}

const noHost = 'no-host.invalid';

function readNumber(
  { value, source }: { value: string | undefined; source: string },
  preset: number,
  least: number,
  most = 1_000_000,
): number {
  const number = value === undefined ? preset : /^\s*\d+\s*$/.test(value) ? Number(value) : -1;
  if (number < least || number > most) {
    throw new Error(
      `${source} is ${JSON.stringify(value)}, which is not a number from ${least} to ${most}.`,
    );
  }
  return number;
}

/**
 * Returns the path of a file in the user's home directory. A user may have none, as in a container.
 */
function inHome(...path: string[]): string {
  try {
    return join(homedir(), ...path);
  } catch {
    return join('/', ...path);
  }
}

/**
 * Returns the text of a file. Returns undefined if the file is missing and no `source` names it.
 * Throws an Error if it cannot be read.
 */
function readFile(path: string, source: string | undefined): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    if (source === undefined && !existsSync(path)) {
      return;
    }
    throw new Error(
      `The file ${path}${source ? ` (${source})` : ''} cannot be read: ${(error as Error).message}.`,
      { cause: error },
    );
  }
}

export const closedEarly = 'closed the connection before it answered';

/** https://www.postgresql.org/docs/16/protocol-message-formats.html */
const sslRequest = Buffer.from([0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]);

/**
 * Connects to the server, over TLS if that is wanted. The driver talks to Postgres through this
 * socket.
 *
 * Throws an Error that says what to do if the server has no TLS although it is required, or if its
 * certificate is not trusted.
 */
export async function openSocket(connection: Connection): Promise<Socket> {
  const { address, port, timeout, tls } = connection;
  const socket = address.startsWith('/')
    ? connect(`${address}/.s.PGSQL.${port}`)
    : connect({ host: address, port });
  /**
   * Resolves with the value of the next event of this name. Rejects if the socket fails or closes
   * first.
   */
  const heard = (from: Socket, event: 'connect' | 'data' | 'secureConnect'): Promise<unknown> =>
    new Promise((resolve, reject) => {
      from.once(event, resolve).once('error', reject);
      from.once('close', () => reject(unreachable(connection, closedEarly)));
    });
  const late = timeout
    ? setTimeout(() => {
        const error = `did not answer within ${timeout} s (connect_timeout)`;
        socket.destroy(unreachable(connection, error));
      }, timeout * 1000)
    : undefined;
  try {
    await heard(socket, 'connect');
    if (!tls) {
      return socket;
    }
    socket.write(sslRequest);
    const answer = String(await heard(socket, 'data'));
    if (answer === 'S') {
      const secured = begin(() => connectTls({ ...tls.options, socket }));
      await heard(secured, 'secureConnect').catch((error) => {
        throw explained(connection, error);
      });
      return secured;
    }
    if (answer !== 'N') {
      throw unreachable(connection, 'does not answer like a Postgres server');
    }
    if (tls.mode === 'allow' || tls.mode === 'prefer') {
      return socket;
    }
    throw new Error(
      `The server ${nameOf(connection)} does not offer TLS, which sslmode=${tls.mode} requires. Enable TLS on the server. In a network that you trust, you may set sslmode to disable instead.`,
    );
  } catch (error) {
    socket.destroy();
    throw error;
  } finally {
    clearTimeout(late);
  }
}

const nameOf = ({ host, port }: Connection) => (host.startsWith('/') ? host : `${host}:${port}`);

/** Returns the Error for a server that cannot be reached. Commands retry after it. */
export const unreachable = (connection: Connection, what: string): Error =>
  Object.assign(new Error(`the server ${nameOf(connection)} ${what}`), { syscall: 'connect' });

/**
 * Starts TLS. Throws an Error that says what to check if TLS cannot begin with the given files.
 * That is known before anything is sent.
 */
function begin<Result>(start: () => Result): Result {
  try {
    return start();
  } catch (error) {
    throw new Error(
      `TLS cannot be set up: ${(error as Error).message}. Check the files that sslrootcert, sslcert and sslkey name, and sslpassword.`,
      { cause: error },
    );
  }
}

/**
 * Returns an Error that says in a sentence why TLS has failed. If the connection was lost, returns
 * the error unchanged.
 */
function explained(connection: Connection, error: NodeJS.ErrnoException): Error {
  const { code = '', message } = error;
  if (code.startsWith('ERR_SSL')) {
    const said = message.replace(/^.*routines:/, '').split(':')[1] ?? message;
    return new Error(
      `TLS with the server ${nameOf(connection)} failed: ${said}. Check the TLS settings of the server, sslcert, and ssl_min_protocol_version.`,
      { cause: error },
    );
  }
  // https://nodejs.org/docs/latest-v20.x/api/tls.html#x509-certificate-error-codes
  const isOfCertificate =
    /CERT|SIGNATURE|^(CRL|INVALID_CA|PATH_LENGTH|INVALID_PURPOSE|HOSTNAME)/.test(code);
  return isOfCertificate ? untrusted(connection, error) : error;
}

function untrusted(connection: Connection, error: NodeJS.ErrnoException): Error {
  const advice =
    error.code === 'ERR_TLS_CERT_ALTNAME_INVALID'
      ? 'Set host to a name in the certificate, and hostaddr to the address of the server.'
      : error.code === 'CERT_HAS_EXPIRED'
        ? 'Renew the certificate.'
        : 'Set sslrootcert to a file with the certificate of the authority that signed it.';
  return new Error(
    `The certificate of the server ${nameOf(connection)} is not trusted: ${error.message}. ${advice}`,
    { cause: error },
  );
}
