// What the documents say is what the package does: the README's example runs, its tables are whole.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  ConfigSchema, ENGINE_ERROR_CODES, EngineEventSchemas, EngineOptionsSchema,
} from '../src/index.js';
import { METHOD_NAMES } from '../src/snake.js';
import { KR, PACKAGE, ROOT, scratch, tinyModel } from './support.js';

const README = readFileSync(join(PACKAGE, 'README.md'), 'utf8');
const PAGE = readFileSync(join(ROOT, 'docs', 'kr-serve.md'), 'utf8');

test('lesson 41: the example of the README runs as it stands', () => {
  const program = /```js\n([\s\S]*?)```/.exec(README)?.[1] ?? '';
  assert.ok(program.split('\n').length <= 13, 'about ten lines');
  const folder = join(scratch(), 'readme');
  // The compiled tree of the tests in place of the installed package.
  const fake = join(folder, 'node_modules', 'kr-serve');
  mkdirSync(fake, { recursive: true });
  writeFileSync(join(fake, 'package.json'), '{"exports": "./src/index.mjs"}');
  symlinkSync(join(PACKAGE, 'build', 'src'), join(fake, 'src'));
  assert.ok(program.includes("'smollm2'"));
  writeFileSync(join(folder, 'a.mjs'),
    program.replaceAll("'smollm2'", JSON.stringify(tinyModel())));
  const said = execFileSync(process.execPath, [join(folder, 'a.mjs')],
    { encoding: 'utf8', env: { ...process.env, KR_PATH: KR } });
  assert.match(said, /\n\d+ tokens\n$/);
});

/** The names in code quotes of a table's first column. */
function firstColumn(text: string, head: string): string[] {
  const begin = text.indexOf(`| ${head} |`);
  assert.ok(begin >= 0, head);
  const table = text.slice(begin).split('\n\n')[0] ?? '';
  return table.split('\n').slice(2)
    .flatMap((row) => [...(row.split(' | ')[0] ?? '').matchAll(/`([^`]+)`/g)])
    .map((match) => match[1] ?? '');
}

test('the table of options names every option that does something', () => {
  const named = new Set(firstColumn(README, 'option of `createEngine`'));
  const does: string[] = [];
  for (const key of Object.keys(EngineOptionsSchema.shape)) {
    if (['pythonPath', 'runtimePath'].includes(key)) continue; // refused
    const inner = { runtime: ['args', 'env', 'cwd'], telemetry: ['enabled', 'hooks'],
      cache: ['enabled', 'cacheDir', 'maxSizeBytes', 'preloadModels'] }[key];
    does.push(...(inner?.map((name) => `${key}.${name}`) ?? [key]));
  }
  assert.deepEqual([...named].sort(), does.sort());
});

test('the tables of methods, events, errors and configuration are whole', () => {
  assert.deepEqual(firstColumn(PAGE, 'method').sort(), [...METHOD_NAMES].sort());
  assert.deepEqual(firstColumn(PAGE, 'event').sort(), Object.keys(EngineEventSchemas).sort());
  assert.deepEqual(firstColumn(PAGE, 'code').sort(), [...ENGINE_ERROR_CODES].sort());
  const documented = new Map([...PAGE.matchAll(/^\| `([a-z_.]+)` \| `([^`]+)` \|/gm)]
    .map((row) => [row[1] ?? '', row[2] ?? '']));
  const real = new Map<string, string>();
  const walk = (value: object, prefix: string): void => {
    for (const [key, inner] of Object.entries(value)) {
      const name = `${prefix}${key}`;
      if (typeof inner === 'object' && !Array.isArray(inner)) walk(inner as object, `${name}.`);
      else real.set(name, JSON.stringify(inner));
    }
  };
  walk(ConfigSchema.parse({}), '');
  assert.deepEqual(documented, real);
});
