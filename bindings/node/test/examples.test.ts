// The examples, run as their README says, from outside of the package's code; the desktop host also
// loses its runtime.
import assert from 'node:assert/strict';
import { execFile, fork, type ChildProcess } from 'node:child_process';
import { join } from 'node:path';
import { before, test, type TestContext } from 'node:test';
import { promisify } from 'node:util';

import { KR, PACKAGE, WAIT_MS, eventually, tinyModel } from './support.js';

const run = promisify(execFile);
const EXAMPLES = join(PACKAGE, 'examples');
const ENV = { ...process.env, KR_PATH: KR, KR_NO_CACHE: '1', KR_THREADS: '1' };

const TSC = join(PACKAGE, 'node_modules', 'typescript', 'bin', 'tsc');

// The examples import the package by its name, as it is shipped.
before(() => run(process.execPath, [TSC, '-p', join(PACKAGE, 'tsconfig.json')]));

async function example(path: string): Promise<string> {
  const { stdout } = await run(process.execPath, [path, tinyModel()],
    { env: ENV, timeout: WAIT_MS });
  return stdout;
}

test('esm.mjs', async () => {
  assert.match(await example(join(EXAMPLES, 'esm.mjs')),
    /\n\d+ tokens\nHello world: \d+ ids\n$/);
});

test('cjs.cjs', async () => {
  assert.match(await example(join(EXAMPLES, 'cjs.cjs')), /^".*"\n$/);
});

test('typescript.ts compiles strictly against the declarations and runs', async () => {
  await run(process.execPath, [TSC, '-p', join(EXAMPLES, 'tsconfig.json')], { timeout: WAIT_MS });
  assert.match(await example(join(PACKAGE, 'build', 'examples', 'typescript.js')),
    /^8 tokens\n".*"\n3 texts\nModelNotLoaded\n$/);
});

test('metrics.mjs', async () => {
  assert.match(await example(join(EXAMPLES, 'metrics.mjs')),
    /^kr_serve_tokens_generated_total\{.*\} 8\np95 of a generation: [\d.]+ ms\n$/);
});

interface Reply {
  id?: number;
  event?: string;
  status?: string;
  result?: Record<string, unknown> & string;
  error?: { code: string; message: string };
}

/** The window's side of desktop-host.mjs. */
class Window {
  readonly host: ChildProcess;
  private readonly replies: Reply[] = [];
  private lastId = 0;

  constructor(t: TestContext) {
    this.host = fork(join(EXAMPLES, 'desktop-host.mjs'), { env: ENV, silent: true });
    this.host.on('message', (reply: Reply) => this.replies.push(reply));
    t.after(() => this.host.kill('SIGKILL'));
  }

  event(name: string, status?: string): Promise<Reply> {
    return this.find(`${name} ${status ?? ''}`,
      (reply) => reply.event === name && (status === undefined || reply.status === status));
  }

  async ask(method: string, params: object = {}): Promise<Reply> {
    const id = ++this.lastId;
    this.host.send({ id, method, params });
    return this.find(method, (reply) => reply.id === id);
  }

  async result(method: string, params: object = {}) {
    const { result, error } = await this.ask(method, params);
    assert.equal(error, undefined, error?.message);
    return result as Record<string, unknown> & string;
  }

  private async find(what: string, is: (reply: Reply) => boolean): Promise<Reply> {
    const found = await eventually(what, () => this.replies.find(is));
    return found as Reply;
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

test('a crash of the child leaves the desktop host alive and the next request works', async (t) => {
  const window = new Window(t);
  await window.event('ready');
  await window.result('load', { model: 'tiny', localPath: tinyModel() });
  const params = { model: 'tiny', prompt: 'a', maxTokens: 5, temperature: 0, ignoreEos: true };
  const text = await window.result('generate', params);
  const pids = new Set<number>();
  for (const isBusy of [true, false, true]) {
    const { pid } = await window.result('info') as unknown as { pid: number };
    assert.notEqual(pid, window.host.pid);
    assert.ok(!pids.has(pid));
    pids.add(pid);
    if (isBusy) {
      // Stopped, so that what is under way cannot end before the crash.
      process.kill(pid, 'SIGSTOP');
      const pending = window.ask('generate', params);
      await eventually('the stream',
        async () => await window.result('streams') as unknown as number);
      process.kill(pid, 'SIGKILL');
      assert.equal((await pending).error?.code, 'TransportError');
    } else {
      process.kill(pid, 'SIGSEGV');
      await eventually('the dead child is gone', () => !isAlive(pid));
      // What is asked before the host has noticed may fail with it.
      await eventually('another child', async () => (await window.ask('info')).error === undefined);
    }
    assert.equal(window.host.exitCode, null);
    assert.equal(await window.result('generate', params), text);
  }
  const last = await window.result('info') as unknown as { pid: number };
  const gone = new Promise((resolve) => window.host.once('exit', resolve));
  window.host.disconnect();
  assert.equal(await gone, 0);
  await eventually('the runtime is gone with its host', () => !isAlive(last.pid));
});
