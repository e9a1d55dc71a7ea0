// `kr runtime` as a child process. Messages go over its stdin and stdout; whatever it logs is on
// stderr and can never be taken for a message. When this program dies, the pipe ends and the child
// with it.
import { spawn } from 'node:child_process';
import type { ChildProcessWithoutNullStreams } from 'node:child_process';
import { existsSync } from 'node:fs';
import { EngineClientError, RuntimeNotFoundError } from '../errors.js';
import { findAddon } from './addon.js';
import type { Addon, SharedData } from './addon.js';
import { LineReader, idOfPrefix } from './lines.js';
import { SharedMemory } from './shared.js';
import type { SharedDescriptor, Transport } from './transport.js';

const LOG_TAIL_CHARS = 4096;
/** Between the process's end and that of its pipes; bytes it wrote before are still read. */
const DRAIN_MS = 50;

export interface ChildOptions {
  krPath: string;
  args?: readonly string[];
  env?: Readonly<Record<string, string>> | undefined;
  cwd?: string | undefined;
  maxMessageBytes: number;
  shutdownTimeoutMs: number;
  onLog?: (line: string) => void;
  /** For shared memory; null: none, the default: where it is built. */
  addon?: Addon | null;
}

export class ChildTransport implements Transport {
  readonly kind = 'child';
  onMessage: (line: string) => void = () => {};
  onClose: (reason: Error | null) => void = () => {};
  private child: ChildProcessWithoutNullStreams | undefined;
  private isStopping = false;
  private isOver = false;
  private logTail = '';
  private writeError: Error | undefined;
  private drained: Promise<void> | undefined;
  private ended: Promise<void> | undefined;

  /** Absent without the addon: all is JSON then. */
  takeShared?: (descriptor: SharedDescriptor) => Buffer;
  giveShared?: (data: SharedData, shape?: readonly number[]) => SharedDescriptor;
  releaseShared?: (descriptor: SharedDescriptor) => void;
  private shared: SharedMemory | undefined;

  constructor(private readonly options: ChildOptions) {
    const addon = options.addon === undefined ? findAddon() : options.addon;
    if (!addon) return;
    const shared = new SharedMemory(addon, null);
    this.shared = shared;
    this.takeShared = (descriptor) => shared.take(descriptor);
    this.giveShared = (data, shape) => shared.give(data, shape);
    this.releaseShared = (descriptor) => shared.release(descriptor);
  }

  get pid(): number | undefined {
    return this.isOver ? undefined : this.child?.pid;
  }

  async start(): Promise<void> {
    const { krPath, cwd } = this.options;
    const child = this.spawn();
    this.child = child;
    await new Promise<void>((resolve, reject) => {
      child.once('spawn', resolve);
      child.once('error', (error) => reject(notStarted(krPath, cwd, error)));
    });
    this.ended = new Promise((resolve) => this.watch(child, resolve));
  }

  /** Resolves when the pipe has taken it, at once unless it is full. Between a failed write and the
   * end that it brings, messages go nowhere: onClose says so, with the reason, in a moment. */
  send(message: string): Promise<void> {
    const input = this.child?.stdin;
    if (input === undefined || this.isOver) return Promise.reject(closed('it is not running'));
    if (!input.writable) return Promise.resolve();
    if (input.write(`${message}\n`)) return Promise.resolve();
    this.drained ??= this.waitForDrain(input);
    return this.drained;
  }

  async stop(): Promise<void> {
    const child = this.child;
    if (child === undefined || this.ended === undefined) return;
    this.isStopping = true;
    child.stdin.end();
    child.kill('SIGTERM');
    const timer = setTimeout(() => child.kill('SIGKILL'), this.options.shutdownTimeoutMs);
    await this.ended;
    clearTimeout(timer);
  }

  /** Some of what is wrong is thrown, the rest comes as an event. */
  private spawn(): ChildProcessWithoutNullStreams {
    const { krPath, args = [], env, cwd } = this.options;
    try {
      return spawn(krPath, ['runtime', ...args], {
        cwd, env: { ...process.env, ...env }, stdio: ['pipe', 'pipe', 'pipe'], windowsHide: true,
      });
    } catch (error) {
      throw notStarted(krPath, cwd, error as Error);
    }
  }

  private waitForDrain(input: ChildProcessWithoutNullStreams['stdin']): Promise<void> {
    return new Promise((resolve) => {
      const done = (): void => {
        input.off('drain', done).off('error', done).off('close', done);
        this.drained = undefined;
        resolve();
      };
      input.once('drain', done).once('error', done).once('close', done);
    });
  }

  private watch(child: ChildProcessWithoutNullStreams, resolve: () => void): void {
    const reader = new LineReader(this.options.maxMessageBytes, {
      line: (text) => this.onMessage(text),
      tooLong: (prefix) => this.onMessage(answerTooLong(prefix, this.options.maxMessageBytes)),
    });
    child.stdout.on('data', (data: Buffer) => reader.push(data));
    child.stderr.setEncoding('utf8').on('data', (text: string) => this.log(text));
    // A failed write breaks the chain: what follows must not arrive, so it is the end. Why there is
    // nobody to read is said by the exit, which is near; only what does not even die is not waited
    // for.
    child.stdin.on('error', (error) => {
      this.writeError = error;
      child.kill('SIGKILL');
      setTimeout(() => this.end(error.message, error), this.options.shutdownTimeoutMs).unref();
    });
    child.on('error', (error) => this.end(error.message, error));
    child.once('exit', (code, signal) => {
      const over = (): void => {
        clearTimeout(timer);
        this.shared?.end(); // it has been reaped: what it had made is nobody's
        resolve();
        this.end(this.describe(code, signal), this.writeError);
      };
      // Behind a read, however late the timer is.
      const timer = setTimeout(() => setImmediate(over), DRAIN_MS);
      child.once('close', over);
    });
  }

  private end(what: string, cause?: unknown): void {
    if (this.isOver) return;
    this.isOver = true;
    this.onClose(this.isStopping ? null : closed(what, cause));
  }

  private log(text: string): void {
    this.logTail = (this.logTail + text).slice(-LOG_TAIL_CHARS);
    const { onLog } = this.options;
    if (onLog === undefined) return;
    for (const line of text.split('\n')) if (line !== '') onLog(line);
  }

  private describe(code: number | null, signal: NodeJS.Signals | null): string {
    // Killed here, because it had stopped reading.
    const isOurs = signal === 'SIGKILL' && this.writeError !== undefined;
    const how = isOurs ? `does not read (${this.writeError?.message})`
      : signal === null ? `ended with ${code}` : `was ended by ${signal}`;
    const lines = this.logTail.trimEnd().split('\n')
      .filter((line) => !line.endsWith('runtime ready'));
    const last = lines.at(-1);
    return last === undefined || last === '' ? `it ${how}` : `it ${how}; its last words: ${last}`;
  }
}

/** Of a folder that is not there the system says what it says of a program that is not there. */
function notStarted(krPath: string, cwd: string | undefined, error: Error): EngineClientError {
  if (cwd !== undefined && !existsSync(`${cwd}/.`)) {
    return new EngineClientError('InvalidParams',
      `cannot run '${krPath}' in '${cwd}' (runtime.cwd): there is no such folder`,
      { field: 'runtime.cwd' }, error);
  }
  return new RuntimeNotFoundError(
    `cannot run '${krPath}': ${error.message}; give its path as krPath or in KR_PATH`, error);
}

function closed(what: string, cause?: unknown): EngineClientError {
  return new EngineClientError('TransportError', `the runtime is gone: ${what}`, undefined, cause);
}

/** Of a message that is too long only its own request fails. Without an id the beginning is handed
 * on; it is no JSON and gets counted as such. */
function answerTooLong(prefix: string, maxBytes: number): string {
  const id = idOfPrefix(prefix);
  if (id === undefined) return prefix;
  const message = `the answer has more than ${maxBytes} bytes (json_rpc.max_line_buffer_size)`;
  return JSON.stringify({
    jsonrpc: '2.0', id, error: { code: -32099, message, data: { type: 'TransportError' } },
  });
}
