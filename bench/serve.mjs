// The Node side of bench/serve.py: node serve.mjs FIGURE '{"package": ..., "kr": ..., ...}' prints one
// JSON object. All but the transport figures go through the public API of the package.
import { execFile, spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { promisify } from 'node:util';

const [figure, words] = process.argv.slice(2);
const args = JSON.parse(words ?? '{}');
const { createEngine } = await import(pathToFileURL(join(args.package, 'dist', 'index.mjs')).href);
const require = createRequire(import.meta.url);
const run = promisify(execFile);

function percentile(values, percent) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(Math.max(Math.ceil((percent / 100) * sorted.length), 1), sorted.length) - 1];
}

function engineOf(options = {}) {
  const { transport = 'child', words: more = [], ...rest } = options;
  const isa = args.isa ? ['--isa', args.isa] : [];
  return createEngine({
    transport, ...(transport === 'child' && { krPath: args.kr }),
    runtime: { args: ['-t', String(args.threads), '-c', String(args.ctx), ...isa, ...more] }, ...rest,
  });
}

async function withEngine(options, use) {
  const engine = await engineOf(options);
  try {
    await engine.loadModel({ model: 'm', localPath: args.model });
    return await use(engine);
  } finally {
    await engine.dispose();
  }
}

// ---- round trips ------------------------------------------------------------------------------

async function timesOf(n, once) {
  const times = [];
  for (let i = -n; i < n; i++) { // the first ones warm up
    const began = performance.now();
    await once(i);
    if (i >= 0) times.push((performance.now() - began) * 1000);
  }
  return times;
}

/** A program that answers each line by one of the same length as the runtime's. */
async function pingPong(n, request, answerBytes) {
  const child = spawn(args.echo, [String(answerBytes)], { stdio: ['pipe', 'pipe', 'inherit'] });
  let told = () => {};
  let got = 0;
  child.stdout.on('data', (data) => {
    got += data.length;
    if (got < answerBytes) return;
    got = 0;
    told();
  });
  const times = await timesOf(n, () => new Promise((resolve) => {
    told = resolve;
    child.stdin.write(request);
  }));
  child.stdin.end();
  await new Promise((resolve) => child.once('close', resolve));
  return times;
}

async function roundtrip() {
  const n = args.quick ? 100 : 5000;
  const rounds = [];
  await withEngine({}, async (engine) => {
    const id = 1234;
    const request = `${JSON.stringify({
      jsonrpc: '2.0', id, method: 'tokenize',
      params: { model_id: 'm', text: 'Hello', token_strings: true },
    })}\n`;
    const result = await engine.tokenize({ model: 'm', text: 'Hello' });
    const answer = JSON.stringify({
      jsonrpc: '2.0', id, result: { tokens: result.tokens, token_strings: result.tokenStrings },
    });
    for (let round = 0; round < args.rounds; round++) {
      const ours = await timesOf(n, () => engine.tokenize({ model: 'm', text: 'Hello' }));
      const bare = await pingPong(n, request, Buffer.byteLength(answer) + 1);
      rounds.push({
        p50: percentile(ours, 50), p95: percentile(ours, 95), p99: percentile(ours, 99),
        bareP50: percentile(bare, 50), bareP95: percentile(bare, 95),
      });
    }
  });
  return { n, rounds };
}

// ---- batches ----------------------------------------------------------------------------------

async function batch() {
  let messages = 0;
  const hooks = { onIpcRequestStarted: () => { messages++; } };
  const texts = Array.from({ length: 100 }, (_, i) => `Text ${i} of a hundred: ${'word '.repeat(8)}`);
  const rounds = [];
  await withEngine({ telemetry: { enabled: true, hooks } }, async (engine) => {
    const one = (text) => engine.tokenize({ model: 'm', text });
    const counted = async (use) => {
      messages = 0;
      const began = performance.now();
      const results = await use();
      return { ms: performance.now() - began, messages, tokens: results.map((r) => r.tokens) };
    };
    for (let round = -2; round < args.rounds * 10; round++) {
      const single = await counted(async () => {
        const results = [];
        for (const text of texts) results.push(await one(text));
        return results;
      });
      const together = await counted(() => Promise.all(texts.map(one)));
      if (JSON.stringify(single.tokens) !== JSON.stringify(together.tokens)) {
        throw new Error('batched and single calls differ');
      }
      if (round < 0) continue;
      rounds.push({
        singleMs: single.ms, batchedMs: together.ms, singleMessages: single.messages,
        batchedMessages: together.messages,
      });
    }
  });
  return { rounds };
}

// ---- token rates ------------------------------------------------------------------------------

/** Tokens a second from the first to the last, as `kr run --json` counts. */
async function rateOf(engine, n) {
  let first;
  let last;
  let count = 0;
  const stream = engine.createGenerator({
    model: 'm', prompt: 'Once upon a time', maxTokens: n, temperature: 0, ignoreEos: true,
  });
  for await (const chunk of stream) {
    if (chunk.type === 'error') throw new Error(chunk.error.message);
    if (chunk.type !== 'token' || chunk.tokenId === undefined) continue;
    last = performance.now();
    first ??= last;
    count++;
  }
  if (count !== n) throw new Error(`${count} tokens of ${n}`);
  return ((count - 1) * 1000) / (last - first);
}

async function commandRate(n) {
  const isa = args.isa ? ['--isa', args.isa] : [];
  const { stdout } = await run(args.kr, ['run', '-m', args.model, '--raw', '-p', 'Once upon a time',
    '-n', String(n), '-c', String(args.ctx), '--ignore-eos', '--temp', '0', '-t',
    String(args.threads), ...isa, '--json'], { maxBuffer: 1 << 26 });
  return JSON.parse(stdout).decode_tps;
}

/** Sides in turns; each has its own process or engine, idle while the others run. */
async function rates() {
  const n = args.quick ? 16 : 256;
  const rounds = [];
  const sides = {};
  const engines = [];
  for (const side of args.sides) {
    if (side === 'run') {
      sides.run = () => commandRate(n);
      continue;
    }
    const engine = await engineOf({ transport: side });
    engines.push(engine);
    await engine.loadModel({ model: 'm', localPath: args.model });
    sides[side] = () => rateOf(engine, n);
  }
  try {
    for (let round = -1; round < args.rounds; round++) {
      const row = {};
      const order = round % 2 ? args.sides : [...args.sides].reverse();
      for (const side of order) row[side] = await sides[side]();
      if (round >= 0) rounds.push(row);
    }
  } finally {
    for (const engine of engines) await engine.dispose();
  }
  return { n, rounds };
}

// ---- a whole session --------------------------------------------------------------------------

/** Run as a process of its own: from its start to its end is the session. */
async function session() {
  const questions = readFileSync(args.questions, 'utf8').split('\n').slice(0, args.systems.length);
  let nGood = 0;
  const answers = [];
  await withEngine({}, async (engine) => {
    for (const [i, question] of questions.entries()) {
      const text = await engine.chat({
        model: 'm', maxTokens: args.maxTokens, temperature: 0,
        messages: [{ role: 'system', content: args.systems[i] },
          { role: 'user', content: question }],
      });
      nGood++; // it would have thrown
      answers.push(text);
    }
  });
  return { n: questions.length, nGood, answers };
}

// ---- many streams -----------------------------------------------------------------------------

const WORDS = 'alpha beta gamma delta epsilon zeta eta theta'.split(' ');
const N_PROMPTS = 48;
const N_STREAMS = 16;

/** Numbers that are the same in each run. */
function randomOf(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 0x1_0000_0000;
  };
}

function requestOf(i, n) {
  return {
    model: 'm', prompt: `${WORDS[i % 8]} ${i} ${WORDS[Math.floor(i / 8) % 8]}`, maxTokens: n,
    temperature: 1, seed: 100 + i, ignoreEos: true,
  };
}

/** How a stream may be left: by its signal, by cancel(), by leaving the loop, before its first
 * token, or not at all. */
const WAYS = ['signal', 'cancel', 'break', 'early', 'whole', 'whole', 'whole', 'whole'];

async function oneStream(engine, params, expected, way, leaveAt) {
  const controller = new AbortController();
  const streamId = `s-${Math.random()}`;
  const seen = { text: '', tokens: 0, ends: 0, finals: 0, error: undefined };
  const stream = engine.createGenerator(params, { streamId, signal: controller.signal });
  if (way === 'early') setImmediate(() => controller.abort());
  for await (const chunk of stream) {
    if (seen.ends > 0) throw new Error(`a chunk behind the end: ${JSON.stringify(chunk)}`);
    if (chunk.type === 'token') {
      seen.text += chunk.token;
      seen.tokens += chunk.tokenId === undefined ? 0 : 1;
      seen.finals += chunk.isFinal ? 1 : 0;
      if (seen.tokens < leaveAt) continue;
      if (way === 'break') break;
      if (way === 'signal') controller.abort();
      if (way === 'cancel') void engine.cancel(streamId);
    } else {
      seen.ends++;
      seen.error = chunk.error;
    }
  }
  if (!expected.startsWith(seen.text)) throw new Error('cross-talk: the text of another stream');
  if (way === 'whole') {
    if (seen.text !== expected || seen.ends !== 1 || seen.finals !== 1 || seen.error) {
      throw new Error(`not whole: ${JSON.stringify({ ...seen, text: seen.text.length })}`);
    }
  } else if (way !== 'break' && seen.ends !== 1) {
    throw new Error(`ended ${seen.ends} times`);
  } else if (seen.error && seen.error.code !== 'Cancelled') {
    throw new Error(`ended with ${seen.error.code}: ${seen.error.message}`);
  }
  return seen.tokens;
}

/** What the child and this process hold. */
function held(pid) {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  return {
    rss: Number(/VmRSS:\s+(\d+)/.exec(status)[1]) * 1024,
    fds: readdirSync(`/proc/${pid}/fd`).length,
    threads: Number(/Threads:\s+(\d+)/.exec(status)[1]),
    heap: (global.gc?.(), process.memoryUsage().heapUsed),
    ownFds: readdirSync('/proc/self/fd').length,
  };
}

async function until(condition, what) {
  const end = performance.now() + 60_000;
  while (!(await condition())) {
    if (performance.now() > end) throw new Error(`${what}: not within 60 s`);
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

async function streams() {
  const { n, rounds } = args;
  const random = randomOf(args.seed ?? 1);
  let nTokens = 0;
  let nStreams = 0;
  let first;
  return withEngine({ words: ['--no-cache', '--parallel', '32'] }, async (engine) => {
    const expected = [];
    for (let i = 0; i < N_PROMPTS; i++) expected.push(await engine.generate(requestOf(i, n)));
    if (new Set(expected).size !== N_PROMPTS) throw new Error('two prompts have the same text');
    const { pid } = await engine.getRuntimeInfo();
    const warm = Math.max(Math.floor(rounds / 5), 1);
    for (let round = 0; round < rounds; round++) {
      const begin = Math.floor(random() * N_PROMPTS);
      nTokens += (await Promise.all(Array.from({ length: N_STREAMS }, (_, k) => {
        const i = (begin + k * 5) % N_PROMPTS;
        const way = WAYS[Math.floor(random() * WAYS.length)];
        return oneStream(engine, requestOf(i, n), expected[i], way, 1 + Math.floor(random() * n));
      }))).reduce((sum, count) => sum + count, 0);
      nStreams += N_STREAMS;
      // Nothing is left, on either side.
      await until(async () => (await engine.healthCheck()).activeStreams === 0, 'all streams ended');
      if (round + 1 === warm) first = held(pid);
      if ((round + 1) % 100 === 0) process.stderr.write(`bench: streams, round ${round + 1}\n`);
    }
    await until(async () => (await engine.healthCheck()).stateConsistent !== false, 'one state');
    return { rounds, nStreams, nTokens, first, last: held(pid), warm };
  });
}

// ---- kill -9 ----------------------------------------------------------------------------------

/** Those that one of these processes made: `kr.`, and in hexadecimal the space of process ids, the
 * maker, its start, a random number. */
function segmentsOf(pids) {
  if (!existsSync('/dev/shm')) return [];
  return readdirSync('/dev/shm').filter((name) => name.startsWith('kr.')
    && pids.has(Number.parseInt(name.split('.')[2], 16)));
}

/** Resolves with how long after `at()` the work failed, and its code; of one that was done with
 * undefined. */
async function failure(work, at) {
  try {
    const ended = await work;
    return ended?.code === undefined ? undefined
      : { ms: performance.now() - at(), code: ended.code };
  } catch (error) {
    if (error.code === undefined) throw error;
    return { ms: performance.now() - at(), code: error.code };
  }
}

async function endOf(stream) {
  for await (const chunk of stream) if (chunk.type === 'error') return chunk.error;
  return undefined;
}

async function kill() {
  const random = randomOf(2);
  const rounds = [];
  const pids = new Set([process.pid]);
  const began = performance.now();
  const engine = await engineOf({ words: args.quick ? ['--no-cache'] : [] });
  engine.on('error', () => {});
  try {
    await engine.loadModel({ model: 'm', localPath: args.model });
    const loadMs = performance.now() - began;
    for (let round = 0; round < args.rounds; round++) {
      const { pid } = await engine.getRuntimeInfo();
      pids.add(pid);
      const lost = new Promise((resolve) => engine.once('runtime:status', resolve));
      let killedAt = Infinity;
      const at = () => killedAt;
      const params = { model: 'm', prompt: `Round ${round}`, maxTokens: args.n, ignoreEos: true };
      const generators = Array.from({ length: 4 }, (_, i) =>
        engine.createGenerator({ ...params, seed: i }));
      // All of them stream before anybody dies.
      await Promise.all(generators.map((one) => one.next()));
      const long = 'word '.repeat(args.quick ? 1000 : 400_000);
      const pending = [
        ...generators.map((one) => failure(endOf(one), at)),
        failure(engine.generate(params), at),
        failure(engine.tokenize({ model: 'm', text: long }), at),
      ];
      await new Promise((resolve) => setTimeout(resolve, random() * 20));
      killedAt = performance.now();
      process.kill(pid, 'SIGKILL');
      const failures = (await Promise.all(pending)).filter((one) => one?.ms >= 0);
      await lost; // what is asked before is one of the pending calls
      await engine.tokenize({ model: 'm', text: 'next' });
      rounds.push({
        rejectMs: Math.max(0, ...failures.map((one) => one.ms)), nextMs: performance.now() - killedAt,
        nPending: failures.length, codes: [...new Set(failures.map((one) => one.code))],
      });
    }
    return { rounds, loadMs, segments: segmentsOf(pids).length };
  } finally {
    await engine.dispose();
  }
}

// ---- 16 MiB, once as numbers in a message, once beside it --------------------------------------

/** Below the public API, whose calls do more than carry: the transport, and the addon's segments. */
class Echo {
  constructor(transport, segments) {
    this.transport = transport;
    this.segments = segments;
    this.lastId = 0;
    this.generation = 0;
    this.waiting = new Map();
    transport.onMessage = (line) => {
      const { id, result, error } = JSON.parse(line);
      const { resolve, reject } = this.waiting.get(id);
      this.waiting.delete(id);
      if (error) reject(new Error(error.message));
      else resolve(result);
    };
  }

  call(method, params) {
    const id = ++this.lastId;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      this.transport.send(JSON.stringify({ jsonrpc: '2.0', id, method, params })).catch(reject);
    });
  }

  async json(values) {
    const tensor = { dtype: 'f32', shape: [values.length], data: Array.from(values) };
    const answer = await this.call('runtime/echo', { tensor });
    if (!answer.tensor.data) throw new Error('the answer is no JSON');
    return Float32Array.from(answer.tensor.data);
  }

  async shared(values) {
    const generation = ++this.generation;
    const name = this.segments.give(null, values, generation, values.length, 0);
    const answer = await this.call('runtime/echo', {
      tensor: {
        kind: 'posix', name, generation, dtype: 'f32', shape: [values.length],
        bytes: values.byteLength,
      },
    });
    const { tensor } = answer;
    if (!tensor.name) throw new Error('the answer is not in shared memory');
    return new Float32Array(this.segments.take(null, tensor.name, tensor.generation, 3,
      tensor.shape[0], 0));
  }
}

async function tensor() {
  const { ChildTransport } = require(join(args.package, 'dist', 'transport', 'child.js'));
  const segments = require(join(args.package, 'prebuilds', 'linux-x64', 'napi.node'));
  // One was asked for shared memory and gives it for whatever is large; the other was not.
  const [sharing, plain] = [0, 1].map(() => new Echo(new ChildTransport({
    krPath: args.kr, args: ['--message-size', '512'], maxMessageBytes: 0x1fff_ffff,
    shutdownTimeoutMs: 5000,
  }), segments));
  const values = Float32Array.from({ length: args.quick ? 1 << 14 : 1 << 22 }, randomOf(3));
  const timed = async (way) => {
    const began = performance.now();
    const got = await way(values);
    const ms = performance.now() - began;
    if (Buffer.compare(Buffer.from(got.buffer), Buffer.from(values.buffer)) !== 0) {
      throw new Error('other values came back');
    }
    return ms;
  };
  const copiesOf = async () =>
    (await sharing.call('runtime/telemetry', {})).shared_memory.copies;
  const rounds = [];
  let copies = 0;
  await Promise.all([sharing.transport.start(), plain.transport.start()]);
  try {
    await sharing.call('runtime/info', { shared_memory: { min_bytes: 4096 } });
    for (let round = -1; round < args.rounds; round++) {
      const before = await copiesOf();
      const sharedMs = await timed((array) => sharing.shared(array));
      copies = Math.max(copies, await copiesOf() - before);
      const jsonMs = await timed((array) => plain.json(array));
      if (round >= 0) rounds.push({ sharedMs, jsonMs });
    }
  } finally {
    await Promise.all([sharing.transport.stop(), plain.transport.stop()]);
  }
  return { bytes: values.byteLength, rounds, copies };
}

const FIGURES = { roundtrip, batch, rates, session, streams, kill, tensor };
process.stdout.write(`${JSON.stringify(await FIGURES[figure]())}\n`);
