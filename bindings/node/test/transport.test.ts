// Lines, connections, time limits: what happens between one message and the next.
import assert from 'node:assert/strict';
import { getEventListeners } from 'node:events';
import { chmodSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { TimeoutError } from '../src/errors.js';
import { RpcConnection } from '../src/rpc/connection.js';
import { ChildTransport } from '../src/transport/child.js';
import { LineReader, idOfPrefix } from '../src/transport/lines.js';
import { ScriptedTransport, eventually, failure, scratch } from './support.js';

const LIMITS = { maxPending: 4, maxWaiting: 2 };
const LIMIT = { timeoutMs: 60_000 };

function reader(maxBytes: number): { push(text: string | Buffer): void; seen: string[] } {
  const seen: string[] = [];
  const lines = new LineReader(maxBytes, {
    line: (text) => seen.push(text), tooLong: (prefix) => seen.push(`long:${prefix.length}`),
  });
  return { push: (text) => lines.push(Buffer.from(text)), seen };
}

test('lesson 1: the limit is of one line, read piece by piece, and costs only that line', () => {
  const { push, seen } = reader(10);
  push(`${'a\n'.repeat(50)}`); // a burst of small lines is no long line
  assert.equal(seen.length, 50);
  push('01234');
  push('56789\n');
  assert.equal(seen.at(-1), '0123456789');
  push('0123456789');
  push('x and more');
  push(' of it\nnext\n');
  assert.deepEqual(seen.slice(-2), ['long:20', 'next']);
});

test('characters that are cut by a read arrive whole, blank lines not at all', () => {
  const { push, seen } = reader(100);
  const bytes = Buffer.from('gr\u00fc\u00df \u{1f600}\n\n');
  for (const byte of bytes) push(Buffer.from([byte]));
  assert.deepEqual(seen, ['gr\u00fc\u00df \u{1f600}']);
});

test('lesson 1: an answer that is too long fails its own call only', () => {
  assert.equal(idOfPrefix('{"jsonrpc":"2.0","id":17,"result":'), 17);
  assert.equal(idOfPrefix('{"jsonrpc": "2.0", "id": 3}'), 3);
  assert.equal(idOfPrefix('{"method":"x","id":17}'), undefined);
});

/** A runtime of a few lines: what it is sent decides what it says. */
function childScript(name: string, body: string): string {
  const path = join(scratch(), name);
  writeFileSync(path, `#!/usr/bin/env node
const say = (o) => process.stdout.write(JSON.stringify({ jsonrpc: '2.0', ...o }) + '\\n');
require('readline').createInterface({ input: process.stdin }).on('line', (line) => {
  const { id, method, params } = JSON.parse(line);
  ${body}
});
`);
  chmodSync(path, 0o755);
  return path;
}

function connect(t: { after(run: () => unknown): void }, krPath: string, maxMessageBytes = 1 << 20):
{ connection: RpcConnection; transport: ChildTransport; closed: Promise<Error | null> } {
  const transport = new ChildTransport({ krPath, maxMessageBytes, shutdownTimeoutMs: 1000 });
  const connection = new RpcConnection(transport, LIMITS);
  const closed = new Promise<Error | null>((resolve) => {
    transport.onClose = (reason) => {
      connection.lose((reason ?? new Error('stopped')) as never);
      resolve(reason);
    };
  });
  t.after(() => transport.stop());
  return { connection, transport, closed };
}

test('lesson 1: over the pipe, too, and the next call works', async (t) => {
  const path = childScript('long', `say({ id, result: 'x'.repeat(params.n) });`);
  const { connection, transport } = connect(t, path, 2000);
  await transport.start();
  assert.equal(await connection.call('a', { n: 1000 }, LIMIT), 'x'.repeat(1000));
  const [error, text] = await Promise.all([
    failure(connection.call('a', { n: 100_000 }, LIMIT), 'TransportError'),
    connection.call('a', { n: 5 }, LIMIT),
  ]);
  assert.match(error.message, /max_line_buffer_size/);
  assert.equal(text, 'xxxxx');
  assert.equal(connection.nBadMessages, 0);
});

test('lesson 3: what is no message is skipped and counted', async (t) => {
  const path = childScript('noise',
    `process.stdout.write('Loading a module...\\n[]\\n7\\n{"half\\n'); say({ id, result: 1 });`);
  const { connection, transport } = connect(t, path);
  await transport.start();
  assert.equal(await connection.call('a', {}, LIMIT), 1);
  assert.equal(await connection.call('a', {}, LIMIT), 1);
  assert.equal(connection.nBadMessages, 8);
});

test('lesson 8: a failed write ends the chain, and every call that hangs on it', async (t) => {
  const path = join(scratch(), 'deaf');
  writeFileSync(path, '#!/bin/sh\nread line\nexec sleep 600 <&-\n', { mode: 0o755 });
  const { connection, transport, closed } = connect(t, path);
  await transport.start();
  const pending = failure(connection.call('a', {}, LIMIT), 'TransportError');
  const more = (async () => {
    for (;;) { // until the pipe notices that nobody reads
      await connection.call('b', { fill: 'x'.repeat(100_000) }, { timeoutMs: 50 })
        .catch((error: Error) => {
          if (!(error instanceof TimeoutError)) throw error;
        });
    }
  })();
  await failure(more, 'TransportError');
  await pending;
  assert.notEqual(await closed, null);
  await failure(connection.call('c', {}, LIMIT), 'TransportError');
});

test('lesson 8: a full pipe makes the sender wait until it drains', async (t) => {
  const path = childScript('slow', `say({ id, result: line.length });`);
  const { transport, connection } = connect(t, path);
  await transport.start();
  let isDrained = false;
  const big = JSON.stringify({ id: 'x', method: 'a', params: { fill: 'x'.repeat(4_000_000) } });
  const sent = transport.send(big).then(() => {
    isDrained = true;
  });
  assert.equal(isDrained, false);
  await sent;
  assert.ok(isDrained);
  assert.ok(Number(await connection.call('a', {}, LIMIT)) > 0);
});

test('lesson 8: time limits and aborts leave no listener, no timer, no entry', async () => {
  const transport = new ScriptedTransport();
  const connection = new RpcConnection(transport, LIMITS);
  const controller = new AbortController();
  const { signal } = controller;
  const error = await failure(connection.call('a', {}, { timeoutMs: 5, signal }), 'Timeout');
  assert.ok(error instanceof TimeoutError);
  assert.match(error.message, /timed out after 5ms/);
  assert.equal(error.method, 'a');
  assert.equal(error.timeout, 5);
  assert.equal(error.requestId, 1);
  assert.ok((error.duration ?? 0) >= 4);
  assert.equal(getEventListeners(signal, 'abort').length, 0);
  assert.equal(connection.nPending, 0);
  const aborted = failure(connection.call('a', {}, { ...LIMIT, signal }), 'Cancelled');
  controller.abort();
  await aborted;
  assert.equal(getEventListeners(signal, 'abort').length, 0);
  await failure(connection.call('a', {}, { ...LIMIT, signal }), 'Cancelled');
  assert.equal(connection.nPending, 0);
  transport.say({ id: 2, result: 'late' }); // of a call that was given up
  assert.equal(connection.nBadMessages, 0);
});

test('lesson 8: calls under way are limited; others wait, a bounded number of them', async () => {
  const transport = new ScriptedTransport();
  const connection = new RpcConnection(transport, LIMITS);
  const calls = Array.from({ length: 6 }, (_, i) => connection.call('a', { i }, LIMIT));
  await failure(connection.call('a', {}, LIMIT), 'ServerError');
  assert.equal(transport.sent.length, 4);
  void connection.call('cancel', {}, { ...LIMIT, isUrgent: true }).catch(() => {});
  assert.equal(transport.of('cancel').length, 1); // passes those who wait
  for (let n = 0; n < 6; n += 1) {
    const request = transport.of('a')[n];
    assert.ok(request);
    transport.say({ id: request.id, result: n });
  }
  assert.deepEqual(await Promise.all(calls), [0, 1, 2, 3, 4, 5]);
  assert.equal(connection.nPending, 1);
  connection.lose(new TimeoutError('x', 1) as never);
  assert.equal(connection.nPending, 0);
});

test('half a surrogate pair is refused by its field, before it could spoil a line', async () => {
  const transport = new ScriptedTransport(({ params }) => params);
  const connection = new RpcConnection(transport, LIMITS);
  for (const [params, field] of [
    [{ text: 'a\ud800' }, 'text'], [{ requests: [{ text: '\udc00b' }] }, 'requests.0.text'],
    [{ messages: [{ content: 'x' }, { content: '\ud83d' }] }, 'messages.1.content'],
  ] as const) {
    const error = await failure(connection.call('a', params, LIMIT), 'InvalidParams');
    assert.equal((error.details as { field: string }).field, field);
  }
  assert.equal(transport.sent.length, 0);
  for (const text of ['\ud83d\ude00', '\\ud800', 'a\u0000b']) {
    assert.deepEqual(await connection.call('a', { text }, LIMIT), { text });
  }
});

test('an end of the child settles every call at once, with its last words', async (t) => {
  const path = childScript('dying', `console.error('out of luck'); process.exit(3);`);
  const { connection, transport, closed } = connect(t, path);
  await transport.start();
  assert.ok((transport.pid ?? 0) > 0);
  const errors = await Promise.all([1, 2, 3].map(() =>
    failure(connection.call('a', {}, LIMIT), 'TransportError')));
  assert.match(String(await closed), /ended with 3.*out of luck/);
  assert.equal(errors.length, 3);
  assert.equal(transport.pid, undefined);
});

test('a program that is not there is named', async (t) => {
  const { transport } = connect(t, '/no/such/kr');
  const error = await failure(transport.start(), 'RuntimeError');
  assert.equal(error.name, 'PythonEnvironmentError');
  assert.match(error.message, /\/no\/such\/kr.*krPath/);
  for (const krPath of [join(process.execPath, 'kr'), 'k\0r']) { // which spawn() throws of
    await failure(connect(t, krPath).transport.start(), 'RuntimeError');
  }
});

test('a folder that is not there is named, not the program', async () => {
  for (const cwd of ['/no/such/folder', process.execPath]) {
    const transport = new ChildTransport({
      krPath: process.execPath, cwd, maxMessageBytes: 1 << 20, shutdownTimeoutMs: 1000,
    });
    const error = await failure(transport.start(), 'InvalidParams');
    assert.ok(error.message.includes(cwd) && error.message.includes('runtime.cwd'), error.message);
  }
});

test('a program that is no runtime: how it ended, and its last words', async (t) => {
  for (let n = 0; n < 10; n += 1) { // whatever comes first, its end or a write that fails
    const { connection, transport } = connect(t, '/bin/true');
    await transport.start();
    const error = await failure(connection.call('a', {}, LIMIT), 'TransportError');
    assert.match(error.message, /it ended with 0/);
  }
  const { connection, transport } = connect(t, '/bin/ls');
  await transport.start();
  const error = await failure(connection.call('a', {}, LIMIT), 'TransportError');
  assert.match(error.message, /it ended with 2; its last words: .*ls: /);
});

test('what ignores a polite end is ended', async (t) => {
  const path = childScript('stubborn', `process.on('SIGTERM', () => {}); say({ id, result: 1 });
  process.stdin.on('end', () => {}); setInterval(() => {}, 1000);`);
  const { connection, transport, closed } = connect(t, path);
  await transport.start();
  await connection.call('a', {}, LIMIT);
  const { pid } = transport;
  await transport.stop();
  assert.equal(await closed, null);
  await eventually('the process is gone', () => {
    try {
      process.kill(pid as number, 0);
      return false;
    } catch {
      return true;
    }
  });
});
