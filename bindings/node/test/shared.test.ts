// Shared memory: what both transports give and take, what they refuse, and what is left when one
// side dies: nothing.
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { test } from 'node:test';
import { RpcConnection } from '../src/rpc/connection.js';
import { agreeOnShared, sharedRequest } from '../src/rpc/tensors.js';
import type { Tensors } from '../src/rpc/tensors.js';
import { findAddon } from '../src/transport/addon.js';
import { ChildTransport } from '../src/transport/child.js';
import { InProcessTransport } from '../src/transport/in-process.js';
import { checkDescriptor } from '../src/transport/shared.js';
import type { SharedDescriptor, Transport } from '../src/transport/transport.js';
import { KR, eventually, failure, makeTinyEngine, tinyModel } from './support.js';

const addon = findAddon();
const skip = addon === undefined ? 'the addon is not built' : false;
const LIMITS = { maxPending: 64, maxWaiting: 64 };
const LIMIT = { timeoutMs: 120_000 };
type Made = { transport: Transport; connection: RpcConnection; tensors: Tensors | undefined };

/** Segments that this process or this child has made. */
function left(pid: number): string[] {
  return readdirSync('/dev/shm').filter((name) => (
    name.startsWith('kr.') && name.split('.')[2] === pid.toString(16)));
}

function args(): string[] {
  return ['--no-cache', '--threads', '1', '-m', `tiny=${tinyModel()}`];
}

function make(kind: Transport['kind']): Transport {
  if (kind === 'in-process') return new InProcessTransport({ args: args() });
  return new ChildTransport({
    krPath: KR, args: args(), maxMessageBytes: 1 << 28, shutdownTimeoutMs: 60_000,
  });
}

async function connect(t: { after(run: () => unknown): void }, transport: Transport,
  minBytes?: number): Promise<Made> {
  const connection = new RpcConnection(transport, LIMITS);
  t.after(() => transport.stop());
  await transport.start();
  const request = minBytes === undefined ? sharedRequest(transport)
    : { shared_memory: { min_bytes: minBytes } };
  const info = await connection.call('runtime/info', request, LIMIT);
  const tensors = await agreeOnShared(transport, info,
    (method, params) => connection.call(method, params, LIMIT));
  connection.tensors = tensors;
  return { transport, connection, tensors };
}

for (const kind of ['child', 'in-process'] as const) {
  test(`${kind}: a tensor there and back, one copy each way, nothing left`, { skip }, async (t) => {
    const { transport, connection } = await connect(t, make(kind));
    assert.ok(transport.giveShared && transport.takeShared);
    const pid = transport.pid ?? 0;
    const values = Float32Array.from({ length: 1 << 20 }, (_, i) => i / 8);
    const tensor = transport.giveShared(values, [1 << 10, 1 << 10]);
    const answer = await connection.call('runtime/echo', { tensor }, LIMIT) as
      { tensor: SharedDescriptor };
    const back = transport.takeShared(answer.tensor);
    assert.deepEqual(new Float32Array(back.buffer as ArrayBuffer), values);
    assert.deepEqual([left(process.pid), left(pid)], [[], []]);
    assert.throws(() => transport.takeShared?.(answer.tensor), /no such segment/);
    const report = await connection.call('runtime/telemetry', {}, LIMIT) as
      { shared_memory: Record<string, number> };
    const { segments_in: nIn, segments_out: nOut, copies } = report.shared_memory;
    assert.deepEqual([nIn, nOut, copies], [2, 1, 2]); // the first is that of the handshake
  });

  test(`${kind}: tokens and embeddings of results, token ids of requests`, { skip }, async (t) => {
    const { connection, tensors } = await connect(t, make(kind), 4096);
    assert.ok(tensors);
    const plain = make(kind);
    const other = new RpcConnection(plain, LIMITS);
    t.after(() => plain.stop());
    await plain.start();
    const both = async (method: string, params: Record<string, unknown>): Promise<unknown> => {
      const [shared, json] = await Promise.all([connection.call(method, params, LIMIT),
        other.call(method, params, LIMIT)]);
      assert.deepEqual(shared, json);
      return shared;
    };
    const text = 'the quick brown fox '.repeat(500);
    const { tokens } = await both('tokenize', { model_id: 'tiny', text }) as { tokens: number[] };
    assert.ok(tokens.length > 1024);
    await both('batch_tokenize', { requests: [{ model_id: 'tiny', text },
      { model_id: 'tiny', text: 'a' }, { model_id: 'none', text: 'a' }] });
    const input = Array.from({ length: 64 }, (_, i) => `text ${i}`);
    const { embeddings, dimensions } = await connection.call('embed',
      { model_id: 'tiny', input }, LIMIT) as { embeddings: number[][]; dimensions: number };
    assert.deepEqual([embeddings.length, embeddings[63]?.length], [64, dimensions]);
    assert.equal(tensors.counts.shared, 3);
    const many = Array.from({ length: 250_000 }, (_, i) => tokens[i % 1000] ?? 0);
    await both('detokenize', { model_id: 'tiny', tokens: many });
    assert.equal(tensors.counts.shared, 4);
    const error = await failure(connection.call('detokenize',
      { model_id: 'none', tokens: many }, LIMIT), 'ModelNotLoaded');
    assert.match(error.message, /none/);
    // What is no token id stays JSON, whose errors name it.
    many[7] = 2 ** 32;
    await failure(connection.call('detokenize', { model_id: 'tiny', tokens: many }, LIMIT),
      'InvalidParams');
    assert.equal(tensors.counts.shared, 5);
    assert.deepEqual(left(process.pid), []);
  });
}

test('an engine uses it of its own accord', { skip }, async (t) => {
  const engine = await makeTinyEngine(t);
  const text = 'abcdefgh '.repeat(60_000);
  const { tokens } = await engine.tokenize({ model: 'tiny', text });
  assert.ok(tokens.length > 250_000);
  assert.equal(await engine.countTokens({ model: 'tiny', text }), tokens.length);
  assert.deepEqual(left(process.pid), []);
});

test('a segment whose answer nobody waits for is freed', { skip }, async (t) => {
  const { transport, connection } = await connect(t, make('child'), 4096);
  const gone = new AbortController();
  const call = connection.call('tokenize', { model_id: 'tiny', text: 'a b '.repeat(20_000) },
    { ...LIMIT, signal: gone.signal });
  gone.abort();
  await failure(call, 'Cancelled');
  await connection.call('runtime/state', {}, LIMIT);
  await eventually('it is gone', () => left(transport.pid ?? 0).length === 0);
});

test('kill -9 of the child leaves no segment, neither ours nor its', { skip }, async (t) => {
  for (let i = 0; i < 5; i += 1) {
    const { transport, connection } = await connect(t, make('child'), 4096);
    const pid = transport.pid ?? 0;
    transport.giveShared?.(new Uint8Array(100_000)); // that nobody takes
    // Answers that nobody takes: past the connection, which would. To it they are no tokens.
    connection.tensors = undefined;
    for (let k = 0; k < 3; k += 1) {
      await failure(connection.call('tokenize',
        { model_id: 'tiny', text: 'a b '.repeat(5000) }, LIMIT), 'TransportError');
    }
    assert.deepEqual([left(pid).length, left(process.pid).length], [3, 1]);
    const closed = new Promise<void>((resolve) => {
      transport.onClose = () => resolve();
    });
    process.kill(pid, 'SIGKILL');
    await closed;
    assert.deepEqual([left(pid), left(process.pid)], [[], []]);
  }
});

test('without the addon all is JSON', async (t) => {
  const transport = new ChildTransport({
    krPath: KR, args: args(), maxMessageBytes: 1 << 28, shutdownTimeoutMs: 60_000, addon: null,
  });
  const { connection, tensors } = await connect(t, transport);
  assert.equal(tensors, undefined);
  const { tokens } = await connection.call('tokenize',
    { model_id: 'tiny', text: 'abcdefgh '.repeat(60_000), token_strings: false }, LIMIT) as
    { tokens: number[] };
  assert.ok(Array.isArray(tokens));
  const report = await connection.call('runtime/telemetry', {}, LIMIT) as
    { shared_memory: Record<string, number> };
  assert.deepEqual([report.shared_memory['fallbacks'], report.shared_memory['segments_out']], [1, 0]);
});

test('a runtime that sees other memory is spoken to in JSON', { skip }, async (t) => {
  assert.ok(addon);
  const blind = { ...addon, give: (): string => `/kr.1.1.1.${'0'.repeat(32)}` };
  const transport = new ChildTransport({
    krPath: KR, args: args(), maxMessageBytes: 1 << 28, shutdownTimeoutMs: 60_000, addon: blind,
  });
  const { connection, tensors } = await connect(t, transport);
  assert.equal(tensors, undefined);
  const { tokens } = await connection.call('tokenize',
    { model_id: 'tiny', text: 'abcdefgh '.repeat(60_000), token_strings: false }, LIMIT) as
    { tokens: number[] };
  assert.ok(Array.isArray(tokens));
});

test('what the other side calls a descriptor is checked', () => {
  const good = { kind: 'posix', name: '/kr.x', generation: 1, dtype: 'i32', shape: [2] };
  assert.deepEqual(checkDescriptor(good),
    { kind: 'posix', name: '/kr.x', generation: 1, dtype: 2, shape: [2] });
  for (const change of [{ kind: 'file' }, { kind: 'memfd' }, { name: 1 }, { name: undefined },
    { generation: 0 }, { generation: '1' }, { generation: 2 ** 60 }, { dtype: 'f64' }, { dtype: '' },
    { dtype: 2 }, { shape: [] }, { shape: [0] }, { shape: [1, 2, 3] }, { shape: 4 },
    { shape: [-1] }]) {
    assert.throws(() => checkDescriptor({ ...good, ...change }), /descriptor/, JSON.stringify(change));
  }
});
