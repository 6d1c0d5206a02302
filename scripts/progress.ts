/** Clears the current line of a terminal, and goes to its start. */
const renewLine = '\r\x1b[K';

/**
 * Shows people how far a command is, on one line of the terminal that is rewritten again and again.
 */
export interface Progress {
  /** Shows every second what is being done, and for how long. Writes nothing to a log. */
  show(doing: string): void;
  /** Shows how far something is, at most ten times a second, or every five seconds in a log. */
  update(howFar: string): void;
  /** Clears the line for the next output. */
  end(): void;
}

export function progressOn(stream: Pick<NodeJS.WriteStream, 'isTTY' | 'write'>): Progress {
  const everyMs = stream.isTTY ? 100 : 5000;
  /** Undefined before the first update. */
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
