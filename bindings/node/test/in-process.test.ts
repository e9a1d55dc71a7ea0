// The runtime inside this process: the same engine over the addon, several of them, every way to end.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readdirSync, readlinkSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { makeTransport } from '../src/transport/make.js';
import { loadConfig } from '../src/config.js';
import { InProcessTransport } from '../src/transport/in-process.js';
import { findAddon } from '../src/transport/addon.js';
import type { Addon, AddonHandle } from '../src/transport/addon.js';
import { SilentLogger, eventually, failure, makeTinyEngine, tinyModel } from './support.js';

const addon = findAddon();
const skip = addon === undefined ? 'the addon is not built' : false;
const IN_PROCESS = { transport: 'in-process' } as const;
const GREEDY = { model: 'tiny', prompt: 'hello', temperature: 0, seed: 1, maxTokens: 24 };

function built(): Addon {
  assert.ok(addon);
  return addon;
}

/** Sockets of this process: a pair for each runtime. */
function countSockets(): number {
  return readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`).startsWith('socket:');
    } catch {
      return false; // the folder's own
    }
  }).length;
}

test('it says the same as the child process, and stdin and stdout are untouched', { skip },
  async (t) => {
    const inside = await makeTinyEngine(t, IN_PROCESS);
    const child = await makeTinyEngine(t);
    for (const prompt of ['hello', 'gr\u00fc\u00df dich', 'a'.repeat(200)]) {
      assert.equal(await inside.generate({ ...GREEDY, prompt }),
        await child.generate({ ...GREEDY, prompt }));
      assert.deepEqual(await inside.tokenize({ model: 'tiny', text: prompt }),
        await child.tokenize({ model: 'tiny', text: prompt }));
    }
    const info = await inside.getRuntimeInfo();
    assert.deepEqual([info.transport, info.pid], ['in-process', process.pid]);
    assert.equal((await child.getRuntimeInfo()).transport, 'child');
  });

test('several engines in one process have nothing of each other', { skip }, async (t) => {
  const engines = await Promise.all([1, 2, 3].map(() => makeTinyEngine(t, IN_PROCESS)));
  const texts = await Promise.all(engines.flatMap((engine) => (
    [1, 2, 3].map(() => engine.generate(GREEDY)))));
  assert.equal(new Set(texts).size, 1);
  const [first, second] = engines;
  await first?.unloadModel('tiny');
  await first?.dispose();
  assert.equal(await second?.generate(GREEDY), texts[0]);
});

test('an engine that was disposed of starts again, and leaves no descriptor', { skip },
  async (t) => {
    const engine = await makeTinyEngine(t, IN_PROCESS);
    const text = await engine.generate(GREEDY);
    const nSockets = countSockets();
    for (let i = 0; i < 3; i += 1) {
      await engine.dispose();
      await eventually('the pair is closed', () => countSockets() <= nSockets - 2);
      await engine.start();
      await engine.loadModel({ model: 'tiny', localPath: tinyModel() });
      assert.equal(await engine.generate(GREEDY), text);
      assert.ok(countSockets() <= nSockets);
    }
  });

test('why it does not start is what the call says', { skip }, async () => {
  for (const [args, words] of [
    [['--no-such-option'], '--no-such-option'], [['--threads', 'many'], '--threads'],
    [['-m', '/no/such/file.gguf'], '/no/such/file.gguf'], [['--socket', '/tmp/x'], '--socket'],
    [['--help'], '--help'],
  ] as const) {
    const transport = new InProcessTransport({ args });
    let nClosed = 0;
    transport.onClose = () => { nClosed += 1; };
    const error = await failure(transport.start(), 'RuntimeError');
    assert.ok(error.message.includes(words), error.message);
    await failure(transport.send('{}'), 'TransportError');
    await transport.stop();
    assert.equal(nClosed, 0);
  }
  const config = loadConfig(undefined, () => {});
  for (const [field, options] of [
    ['runtime.cwd', { runtime: { cwd: '/' } }], ['runtime.env', { runtime: { env: {} } }],
    ['krPath', { krPath: '/usr/bin/kr' }],
  ] as const) {
    assert.throws(() => makeTransport({ ...IN_PROCESS, ...options }, config, new SilentLogger()),
      { code: 'InvalidParams', details: { field } });
  }
});

test('ending it ends what runs, once', { skip }, async (t) => {
  const engine = await makeTinyEngine(t, IN_PROCESS);
  const streams = [1, 2, 3].map(async () => {
    let n = 0;
    for await (const chunk of engine.createGenerator({ ...GREEDY, maxTokens: 100_000 })) {
      if (chunk.type === 'token') n += 1;
    }
    return n;
  });
  const ends = Promise.allSettled(streams);
  await engine.tokenize({ model: 'tiny', text: 'a' });
  await Promise.all([engine.dispose(), engine.dispose()]);
  await ends;
});

test('a slow reader holds the runtime back, not the event loop', { skip }, async (t) => {
  const { open, send, end } = built();
  const n = 900_000;
  const data = Array.from({ length: n }, (_, i) => i % 10);
  let lines = 0;
  let drained = 0;
  await new Promise<void>((resolve) => {
    t.after(() => end(handle));
    const handle = open([], (kind, value) => {
      if (kind === 'ready') {
        let waited = 0;
        for (let id = 0; id < 8; id += 1) {
          waited = Math.max(waited, send(handle, JSON.stringify({
            jsonrpc: '2.0', id, method: 'runtime/echo',
            params: { tensor: { dtype: 'u8', shape: [n], data } },
          })));
        }
        assert.ok(waited > 0);
      } else if (kind === 'drained') {
        drained += 1;
      } else if (kind === 'lines') {
        for (const line of value as string[]) {
          const { result } = JSON.parse(line) as { result: { tensor: { data: number[] } } };
          assert.equal(result.tensor.data.length, n);
          lines += 1;
        }
        if (lines === 8) end(handle);
      } else {
        assert.equal(value, '');
        resolve();
      }
    });
  });
  assert.ok(drained >= 1);
});

test('every argument is checked', { skip }, async (t) => {
  const { open, send, end, take, give, unlink } = built() as unknown as
    Record<string, (...args: unknown[]) => unknown>;
  const handle = await new Promise<AddonHandle>((resolve) => {
    const made = open?.([], (kind: string) => {
      if (kind === 'ready') resolve(made as AddonHandle);
    });
  });
  t.after(() => end?.(handle));
  const bytes = new Uint8Array(8);
  const calls: [((...args: unknown[]) => unknown) | undefined, unknown[]][] = [
    [open, []], [open, [[]]], [open, ['x', () => {}]], [open, [[1], () => {}]], [open, [[], {}]],
    [open, [['a\0b'], () => {}]], [open, [Array(300).fill('x'), () => {}]],
    [send, []], [send, [handle]], [send, [handle, 1]], [send, [handle, 'a\nb']],
    [send, [{}, 'a']], [send, [null, 'a']], [send, [Object.create(handle), 'a']],
    [end, []], [end, [1]], [end, [{}]],
    [take, []], [take, [null, null, 1, 1, 1, 0]], [take, [{}, null, 1, 1, 1, 0]],
    [take, [handle, null, 1, 1, 1, 0]], [take, [null, 'x', 1, 1, 1, 0]],
    [take, [null, '/kr.\0', 1, 1, 1, 0]], [take, [null, 'x', 0, 1, 1, 0]],
    [take, [null, 'x', 1, 4, 1, 0]], [take, [null, 'x', 1, 0, 1, 0]],
    [take, [null, 'x', 1, 1, 2 ** 40, 2 ** 40]], [take, [null, 'x', 1, 1, -1, 0]],
    [take, [null, 'x', 1.5, 1, 1, 0]], [take, [null, 'x', NaN, 1, 1, 0]],
    [take, [null, 'x', 2 ** 60, 1, 1, 0]],
    [give, []], [give, [null, [1], 1, 1, 0]], [give, [null, bytes.buffer, 1, 8, 0]],
    [give, [null, new Float64Array(1), 1, 1, 0]], [give, [null, bytes, 1, 7, 0]],
    [give, [null, bytes, 1, 8, 2]], [give, [null, bytes, 0, 8, 0]],
    [give, [null, new Uint8Array(0), 1, 0, 0]], [give, [{}, bytes, 1, 8, 0]],
    [unlink, []], [unlink, [1]],
  ];
  for (const [call, args] of calls) {
    assert.throws(() => call?.(...args), Error, JSON.stringify(args));
  }
  unlink?.('/../../etc/passwd'); // no name of a segment: nothing happens
  end?.(handle);
  end?.(handle);
  await eventually('it has ended', () => {
    try {
      send?.(handle, '{}');
      return false;
    } catch {
      return true;
    }
  });
  assert.throws(() => give?.(handle, bytes, 1, 8, 0), /ended/);
});

const WORKER = `
const { parentPort, workerData } = require('node:worker_threads');
const addon = require(workerData.addon);
const handle = addon.open(['--no-cache', '--threads', '1', '-m', 'tiny=' + workerData.model],
  (kind, value) => {
    if (kind === 'ready') {
      addon.send(handle, JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'generate', params: {
        model_id: 'tiny', prompt: 'a', max_tokens: 100000, ignore_eos: true } }));
    } else if (kind === 'lines') parentPort.postMessage(value.length);
  });
`;

function addonFile(): string {
  return require.resolve(join(__dirname, '..', '..', 'prebuilds',
    `${process.platform}-${process.arch}`, 'napi.node'));
}

test('a worker that is terminated takes its runtime with it', { skip }, async () => {
  const before = countSockets();
  for (let i = 0; i < 3; i += 1) {
    const worker = new Worker(WORKER,
      { eval: true, workerData: { addon: addonFile(), model: tinyModel() } });
    await new Promise<void>((resolve, reject) => {
      worker.once('message', () => resolve());
      worker.once('error', reject);
    });
    await worker.terminate();
  }
  await eventually('all sockets are closed', () => countSockets() <= before);
});

test('a program that ends with a runtime that is busy just ends', { skip }, () => {
  for (const end of ['process.exit(7)', 'setImmediate(() => process.exit(7))',
    'process.exitCode = 7; addon.end(handle)']) {
    const { status, stderr } = spawnSync(process.execPath, ['-e', `
      const workerData = ${JSON.stringify({ addon: addonFile(), model: tinyModel() })};
      const addon = require(workerData.addon);
      let isTold = false;
      const handle = addon.open(['--no-cache', '--threads', '1', '-m', 'tiny=' + workerData.model],
        (kind) => {
          if (kind === 'ready') {
            addon.send(handle, JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'generate',
              params: { model_id: 'tiny', prompt: 'a', max_tokens: 100000, ignore_eos: true } }));
          } else if (kind === 'lines' && !isTold) {
            isTold = true;
            ${end};
          }
        });`], { timeout: 120_000, encoding: 'utf8' });
    assert.deepEqual([status, stderr], [7, '']);
  }
});
