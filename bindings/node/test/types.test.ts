// The contract at the level of types: these tests fail by not compiling.
import assert from 'node:assert/strict';
import type { EventEmitter } from 'node:events';
import { test } from 'node:test';
import type { EngineMethods, EnginePublicAPI, SnakeCase, SnakeMethods } from '../src/api.js';
import { Engine, createEngine } from '../src/index.js';
import type { MLXEngine } from '../src/index.js';
import { METHOD_NAMES, snakeCase } from '../src/snake.js';

type Same<A, B> = [A] extends [B] ? [B] extends [A] ? true : false : false;
function holds<T extends true>(..._: T[]): void {}

type Own = Exclude<keyof Engine, keyof EventEmitter>;
type Contract = Exclude<keyof EnginePublicAPI, keyof EventEmitter>;

test('class and contract have the same keys', () => {
  // `start` is what createEngine calls; asyncDispose is the language's; the port is no method.
  type Methods = Exclude<Own, 'start' | 'telemetryPort' | typeof Symbol.asyncDispose>;
  holds<Same<Methods, Contract>>();
  holds<Engine extends EnginePublicAPI ? true : false>();
});

test('every camelCase method has its snake_case twin', () => {
  holds<Same<SnakeCase<'isDraftModelCompatible'>, 'is_draft_model_compatible'>>();
  holds<Same<SnakeCase<keyof EngineMethods>, keyof SnakeMethods>>();
  holds<SnakeCase<keyof EngineMethods> extends keyof Engine ? true : false>();
  holds<Same<Engine['load_model'], Engine['loadModel']>>();
  holds<Same<Engine['get_artifact_cache_health'], Engine['getArtifactCacheHealth']>>();
  const prototype = Engine.prototype as unknown as Record<string, unknown>;
  assert.ok(METHOD_NAMES.length >= 32);
  for (const name of METHOD_NAMES) {
    assert.equal(typeof prototype[name], 'function', name);
    assert.equal(typeof prototype[snakeCase(name)], 'function', snakeCase(name));
  }
});

test('the types of the surface are what programs wrote against', () => {
  holds<Same<ReturnType<typeof createEngine>, Promise<Engine>>>();
  holds<Same<Awaited<ReturnType<Engine['generate']>>, string>>();
  holds<Same<Awaited<ReturnType<MLXEngine['tokenize']>>, number[]>>();
  type Streamed = ReturnType<Engine['createGenerator']> extends AsyncGenerator<infer C, void>
    ? C : never;
  holds<Same<Streamed['type'], 'token' | 'metadata' | 'error'>>();
});
