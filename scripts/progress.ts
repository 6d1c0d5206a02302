/** Takes a terminal back to the start of its line, which is empty then. */
const renewLine = '\r\x1b[K';

/** Tells people how far a command is, on one line of a terminal that renews itself. */
export interface Progress {
  /** Says every second what is being done, and for how long. A log is told nothing. */
  show(doing: string): void;
  /** Says how far something is, at most ten times a second, and to a log every five seconds. */
  update(howFar: string): void;
  /** Leaves the line empty, for what is written next. */
  end(): void;
}

export function progressOn(stream: Pick<NodeJS.WriteStream, 'isTTY' | 'write'>): Progress {
  const everyMs = stream.isTTY ? 100 : 5000;
  /** Undefined before there is anything to tell. */
  let updatedAt: number | undefined;
  let timer: NodeJS.Timeout | undefined;
  let isEmpty = true;
  const write = (text: string) => {
    stream.write(`${renewLine}${text}`);
    isEmpty = text === '';
  };
  const end = () => {
    clearInterval(timer);
    if (!isEmpty) {
      write('');
    }
  };
  return {
    show: (doing) => {
      end();
      if (stream.isTTY) {
        let seconds = 0;
        timer = setInterval(() => {
          seconds += 1;
          write(`${doing}, ${seconds} s`);
        }, 1000);
      }
    },
    update: (howFar) => {
      updatedAt ??= performance.now();
      if (performance.now() - updatedAt < everyMs) {
        return;
      }
      clearInterval(timer);
      if (stream.isTTY) {
        write(howFar);
      } else {
        stream.write(`${howFar}\n`);
      }
      updatedAt = performance.now();
    },
    end,
  };
}
