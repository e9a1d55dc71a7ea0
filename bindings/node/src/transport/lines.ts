// Cuts bytes into lines as they come. A line may be long; what is over the limit is skipped to its
// newline, its beginning reported, and the next line is read as if nothing had been. The limit is
// of one line, not of what one read brought.

const PREFIX_BYTES = 256;

export interface LineSink {
  line(text: string): void;
  /** The beginning of a line that is too long, once for each. */
  tooLong(prefix: string): void;
}

export class LineReader {
  private parts: Buffer[] = [];
  private nBytes = 0;
  private isSkipping = false;

  constructor(private readonly maxBytes: number, private readonly sink: LineSink) {}

  push(data: Buffer): void {
    let begin = 0;
    for (;;) {
      const end = data.indexOf(10, begin);
      if (end < 0) break;
      this.take(data.subarray(begin, end));
      this.finish();
      begin = end + 1;
    }
    if (begin < data.length) this.take(data.subarray(begin));
  }

  /** Half a line at the end of input is nothing. */
  reset(): void {
    this.parts = [];
    this.nBytes = 0;
    this.isSkipping = false;
  }

  private take(part: Buffer): void {
    if (this.isSkipping || part.length === 0) return;
    this.nBytes += part.length;
    this.parts.push(part);
    if (this.nBytes <= this.maxBytes) return;
    const prefix = Buffer.concat(this.parts).subarray(0, PREFIX_BYTES).toString('utf8');
    this.reset();
    this.isSkipping = true;
    this.sink.tooLong(prefix);
  }

  private finish(): void {
    if (this.isSkipping) {
      this.isSkipping = false;
      return;
    }
    if (this.nBytes === 0) return;
    const [first] = this.parts;
    const whole = this.parts.length === 1 && first ? first : Buffer.concat(this.parts);
    this.parts = [];
    this.nBytes = 0;
    this.sink.line(whole.toString('utf8'));
  }
}

/** The id of an answer, from its first bytes, where the runtime writes it. */
export function idOfPrefix(prefix: string): number | undefined {
  const match = /^\s*\{\s*"jsonrpc"\s*:\s*"2\.0"\s*,\s*"id"\s*:\s*(\d+)\s*[,}]/.exec(prefix);
  return match?.[1] === undefined ? undefined : Number(match[1]);
}
