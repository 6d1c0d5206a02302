import { isUtf8 } from 'node:buffer';
import { createReadStream } from 'node:fs';
import { pipeline } from 'node:stream';
import { createGunzip } from 'node:zlib';

/**
 * The bytes with which files of other kinds begin.
 * https://en.wikipedia.org/wiki/List_of_file_signatures
 */
const signatures: [kind: string, bytes: number[]][] = [
  ['a gzip file. Name it .csv.gz', [0x1f, 0x8b]],
  ['a zip archive, as Excel writes (xlsx). Export it as CSV', [0x50, 0x4b, 0x03, 0x04]],
  ['an Excel file (xls). Export it as CSV', [0xd0, 0xcf, 0x11, 0xe0]],
  ['a Parquet file. Export it as CSV', [0x50, 0x41, 0x52, 0x31]],
  ['a Zstandard file. Compress it with gzip, or not at all', [0x28, 0xb5, 0x2f, 0xfd]],
  ['a bzip2 file. Compress it with gzip, or not at all', [0x42, 0x5a, 0x68]],
  ['an xz file. Compress it with gzip, or not at all', [0xfd, 0x37, 0x7a, 0x58, 0x5a]],
  ['a PDF file. Export it as CSV', [0x25, 0x50, 0x44, 0x46]],
];

/** Byte order marks. If two begin with the same bytes, the longer one comes first. */
const marks: [encoding: string, bytes: number[]][] = [
  ['utf-32', [0xff, 0xfe, 0x00, 0x00]],
  ['utf-32', [0x00, 0x00, 0xfe, 0xff]],
  ['utf-16le', [0xff, 0xfe]],
  ['utf-16be', [0xfe, 0xff]],
];

const beginsWith = (start: Buffer, bytes: number[]) =>
  bytes.every((byte, index) => start[index] === byte);

/** The path of a file, and whether it is compressed. */
export interface Source {
  path: string;
  isCompressed: boolean;
}

/**
 * Yields the bytes of a file, uncompressed. Calls `onRead` now and then with the number of bytes of
 * the file that have been read.
 */
async function* readBytes(
  { path, isCompressed }: Source,
  onRead: (bytes: number) => void = () => {},
): AsyncGenerator<Buffer> {
  let total = 0;
  const file = createReadStream(path, { highWaterMark: 2 ** 18 }).on('data', (chunk) => {
    total += chunk.length;
    onRead(total);
  });
  if (!isCompressed) {
    yield* file;
    return;
  }
  const unpacked = createGunzip();
  // A failure of either stream ends the second one with the error.
  yield* pipeline(file, unpacked, () => {});
  for await (const chunk of createReadStream(path, { start: unpacked.bytesWritten })) {
    // Node.js stops at zero bytes after the end, with which some tools fill the last block.
    if ((chunk as Buffer).some((byte) => byte !== 0)) {
      throw new Error(
        'the gzip file has data after its end, which would not be read. Compress it again',
      );
    }
  }
}

/**
 * Yields the text of a file in UTF-8, or in UTF-16 if it has a byte order mark.
 *
 * Throws an UnreadableError if the file cannot be read, has another encoding, or is of another
 * kind.
 */
export async function* readText(
  source: Source,
  onRead: (bytes: number) => void = () => {},
): AsyncGenerator<string> {
  let decoder: InstanceType<typeof TextDecoder> | undefined;
  let isUnicode = false;
  try {
    for await (const chunk of readBytes(source, onRead)) {
      if (!decoder) {
        const [, encoding = 'utf-8'] =
          marks
            .map(([name, bytes]) => [beginsWith(chunk, bytes), name] as const)
            .find(([is]) => is) ?? [];
        refuseOtherKinds(chunk, encoding);
        isUnicode = encoding !== 'utf-8';
        decoder = new TextDecoder(encoding, { fatal: true });
      }
      yield decoder.decode(chunk, { stream: true });
    }
    yield decoder?.decode() ?? '';
  } catch (error) {
    throw await explain(error as NodeJS.ErrnoException, source, isUnicode);
  }
}

function refuseOtherKinds(start: Buffer, encoding: string): void {
  const [kind] = signatures.find(([, bytes]) => beginsWith(start, bytes)) ?? [];
  if (kind) {
    throw new Error(`this is ${kind}`);
  }
  if (encoding === 'utf-32' || (encoding === 'utf-8' && start.includes(0))) {
    throw new Error(
      'this is not text in UTF-8: it has NUL bytes. Export it as UTF-8, or as UTF-16 with a byte order mark',
    );
  }
}

async function explain(
  error: NodeJS.ErrnoException,
  source: Source,
  isUnicode: boolean,
): Promise<UnreadableError> {
  if (error.code === 'ERR_ENCODING_INVALID_ENCODED_DATA') {
    return isUnicode
      ? new Error('this is not UTF-16, although its byte order mark says so. Export it as UTF-8')
      : Object.assign(new Error('this has bytes that are not UTF-8. Export the file as UTF-8'), {
          line: await lineOfInvalidBytes(source),
        });
  }
  if (error.syscall) {
    return new Error(`the file cannot be read: ${error.message}`);
  }
  if (error.code?.startsWith('Z_')) {
    return new Error(
      `this is not a gzip file, or it is damaged or incomplete (${error.message}). Name it .csv if it is not compressed, otherwise copy it again`,
    );
  }
  return error;
}

/** A problem with a whole file, or with a file from a line on. */
export interface UnreadableError extends Error {
  line?: number;
}

/** Returns the number of the first line whose bytes are not UTF-8. */
async function lineOfInvalidBytes(source: Source): Promise<number> {
  let line = 0;
  let rest = '';
  // Decoded as one character per byte. If a chunk ends with a carriage return, the next one may
  // begin with its line feed.
  for await (const chunk of readBytes(source)) {
    const lines = (rest + chunk.toString('latin1')).split(/\r\n|\r(?!$)|\n/);
    rest = lines.pop() ?? '';
    for (const text of lines) {
      line += 1;
      if (!isUtf8(Buffer.from(text, 'latin1'))) {
        return line;
      }
    }
  }
  return line + 1;
}
