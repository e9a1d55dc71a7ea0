// What the tests share: the built program, a tiny seeded model, engines that end with their test, a
// scripted transport, waiting for conditions.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { Engine } from '../src/engine.js';
import type { EngineDependencies } from '../src/engine.js';
import type { EngineClientError, EngineErrorCode } from '../src/errors.js';
import type { EngineOptions, Logger } from '../src/types.js';
import type { Transport } from '../src/transport/transport.js';

/** For anything; a busy machine is slow, not wrong. */
export const WAIT_MS = 120_000;
/** From build/test to the package. */
export const PACKAGE = resolve(__dirname, '..', '..');
export const ROOT = resolve(PACKAGE, '..', '..');
export const BUILD = resolve(process.env['KR_BUILD_DIR'] ?? join(ROOT, 'build'));
export const KR = join(BUILD, 'kr');

export async function eventually<T>(what: string,
  condition: () => T | Promise<T>): Promise<NonNullable<T>> {
  const end = performance.now() + WAIT_MS;
  for (;;) {
    const value = await condition();
    if (value) return value;
    assert.ok(performance.now() < end, `${what}: not within ${WAIT_MS} ms`);
    await new Promise((done) => {
      setTimeout(done, 5);
    });
  }
}

let folder: string | undefined;
export function scratch(): string {
  if (folder === undefined) {
    const made = mkdtempSync(join(tmpdir(), 'kr-serve-'));
    process.on('exit', () => rmSync(made, { recursive: true, force: true }));
    folder = made;
  }
  return folder;
}

const models = new Map<string, string>();
/** The path of a tiny model with seeded random weights. */
export function tinyModel(preset = 'llama'): string {
  const known = models.get(preset);
  if (known !== undefined) return known;
  const path = join(scratch(), `${preset}.gguf`);
  execFileSync(join(BUILD, 'tests', 'make_tiny_gguf'), [preset, path], { stdio: 'ignore' });
  models.set(preset, path);
  return path;
}

export class SilentLogger implements Logger {
  readonly lines: string[] = [];
  debug(message: string): void { this.lines.push(`debug ${message}`); }
  info(message: string): void { this.lines.push(`info ${message}`); }
  warn(message: string): void { this.lines.push(`warn ${message}`); }
  error(message: string): void { this.lines.push(`error ${message}`); }
}

interface Context {
  after(run: () => unknown): void;
}

/** An engine on the real runtime, not started, that is disposed of behind the test. */
export function makeEngine(t: Context, options: EngineOptions = {},
  dependencies: EngineDependencies = {}): Engine {
  const args = ['--no-cache', '--threads', '1', ...options.runtime?.args ?? []];
  const isInProcess = process.env['KR_SERVE_TEST_TRANSPORT'] === 'in-process';
  const transport = options.transport ?? (isInProcess ? 'in-process' : 'child');
  const engine = new Engine({
    ...(transport === 'child' && { krPath: KR }), transport, ...options,
    runtime: { ...options.runtime, args },
  }, { logger: new SilentLogger(), ...dependencies });
  t.after(() => engine.dispose());
  return engine;
}

/** With the model `tiny`. */
export async function makeTinyEngine(t: Context, options: EngineOptions = {},
  dependencies: EngineDependencies = {}): Promise<Engine> {
  const engine = makeEngine(t, options, dependencies);
  await engine.start();
  await engine.loadModel({ model: 'tiny', localPath: tinyModel() });
  return engine;
}

/** What the call was refused with. */
export async function failure(promise: Promise<unknown>,
  code?: EngineErrorCode): Promise<EngineClientError> {
  try {
    await promise;
  } catch (error) {
    const { name, code: found, message } = error as EngineClientError;
    if (code !== undefined) assert.equal(found, code, `${name}: ${message}`);
    return error as EngineClientError;
  }
  throw new assert.AssertionError({ message: 'the call did not fail' });
}

export interface Request {
  id?: number;
  method: string;
  params: Record<string, unknown>;
}
export type Answers = (request: Request, transport: ScriptedTransport) => unknown;

export const INFO = {
  version: '0', protocol: 'json-rpc-2.0', protocol_version: 1, pid: 1, isa: 'test',
  capabilities: [], limits: {},
};

/** A runtime that answers what a function says; undefined: nothing yet. */
export class ScriptedTransport implements Transport {
  readonly kind = 'child';
  onMessage: (line: string) => void = () => {};
  onClose: (reason: Error | null) => void = () => {};
  readonly sent: Request[] = [];
  isStarted = false;
  isStopped = false;

  constructor(private readonly answers: Answers = () => undefined) {}

  async start(): Promise<void> {
    this.isStarted = true;
  }

  send(message: string): Promise<void> {
    if (this.isStopped) return Promise.reject(new Error('stopped'));
    const request = JSON.parse(message) as Request;
    this.sent.push(request);
    const result = this.answers(request, this)
      ?? (request.method === 'runtime/info' ? INFO
        : request.method === 'list_models' ? { models: [] } : undefined);
    if (result !== undefined && result !== NOTHING && request.id !== undefined) {
      queueMicrotask(() => this.say({ id: request.id, result }));
    }
    return Promise.resolve();
  }

  say(message: object): void {
    this.onMessage(JSON.stringify({ jsonrpc: '2.0', ...message }));
  }

  fail(request: Request, code: number, message = 'no', data: object = {}): void {
    queueMicrotask(() => this.say({ id: request.id, error: { code, message, data } }));
  }

  crash(): void {
    this.isStopped = true;
    this.onClose(new Error('crashed'));
  }

  async stop(): Promise<void> {
    if (this.isStopped) return;
    this.isStopped = true;
    this.onClose(null);
  }

  of(method: string): Request[] {
    return this.sent.filter((request) => request.method === method);
  }
}
/** Instead of an answer that would be given by itself. */
export const NOTHING = Symbol('no answer');
