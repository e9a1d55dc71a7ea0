// The artefact that is published, not the tree that it was made from: packed, installed into an
// empty project, imported both ways, compiled against, run.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import {
  cpSync, existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { KR, PACKAGE, scratch, tinyModel } from './support.js';

const MODULES = join(PACKAGE, 'node_modules');
const project = join(scratch(), 'project');
let files: string[] = [];

function run(command: string, args: string[], env: Record<string, string> = {}): string {
  return execFileSync(command, args, {
    cwd: project, encoding: 'utf8', env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
}
const node = (file: string): string => run(process.execPath, [file], { KR_PATH: KR });

before(() => {
  mkdirSync(project);
  // A copy, so that packing changes nothing under the feet of other tests. prepack compiles it;
  // nothing comes from the registry, what it needs is lent.
  const source = join(scratch(), 'source');
  mkdirSync(source);
  for (const name of ['src', 'prebuilds', 'package.json', 'tsconfig.json', 'esm.cjs',
    'README.md']) {
    if (existsSync(join(PACKAGE, name))) {
      cpSync(join(PACKAGE, name), join(source, name), { recursive: true });
    }
  }
  symlinkSync(MODULES, join(source, 'node_modules'));
  const said = execFileSync('npm', ['pack', '--json', '--pack-destination', project],
    { cwd: source, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
  const packed = (JSON.parse(said.slice(said.indexOf('[\n'))) as {
    filename: string; files: { path: string }[];
  }[])[0];
  assert.ok(packed);
  files = packed.files.map((file) => file.path);
  writeFileSync(join(project, 'package.json'), '{"name": "host", "private": true}');
  run('npm', ['install', '--offline', '--no-audit', '--no-fund', '--legacy-peer-deps',
    join(project, packed.filename), join(MODULES, 'zod')]);
  mkdirSync(join(project, 'node_modules', '@types'), { recursive: true });
  symlinkSync(join(MODULES, '@types', 'node'), join(project, 'node_modules', '@types', 'node'));
});

test('lesson 41: it holds what it needs and nothing else, types included', () => {
  for (const name of ['dist/index.js', 'dist/index.mjs', 'dist/index.d.ts', 'dist/index.d.mts',
    'README.md', 'package.json']) {
    assert.ok(files.includes(name), name);
  }
  const expected = /^(dist|prebuilds)\/|^(README\.md|package\.json)$/;
  const odd = files.filter((file) => !expected.test(file));
  assert.deepEqual(odd, []);
  const { dependencies } = JSON.parse(readFileSync(join(PACKAGE, 'package.json'), 'utf8')) as {
    dependencies: Record<string, string>;
  };
  assert.deepEqual(Object.keys(dependencies).filter((name) => name !== 'node-gyp-build'), ['zod']);
});

const BODY = `
  const engine = await createEngine({ runtime: { args: ['--no-cache'] } });
  await engine.loadModel({ model: 'tiny', localPath: ${JSON.stringify(tinyModel())} });
  const text = await engine.generate({ model: 'tiny', prompt: 'Hi', maxTokens: 3, seed: 1 });
  console.log(typeof text, engine instanceof Engine);
  await engine.dispose();`;

test('lesson 21: the packed artefact starts and generates, required and imported', () => {
  writeFileSync(join(project, 'a.cjs'),
    `const { createEngine, Engine } = require('kr-serve');\n(async () => {${BODY}\n})();\n`);
  writeFileSync(join(project, 'b.mjs'),
    `import { createEngine, Engine } from 'kr-serve';\n${BODY}\n`);
  assert.equal(node('a.cjs'), 'string true\n');
  assert.equal(node('b.mjs'), 'string true\n');
});

test('lesson 41: required and imported it is one package, without OpenTelemetry too', () => {
  writeFileSync(join(project, 'c.mjs'), `
    import * as imported from 'kr-serve';
    import { createRequire } from 'node:module';
    const required = createRequire(import.meta.url)('kr-serve');
    const names = Object.keys(required).filter((name) => required[name] !== imported[name]);
    console.log(JSON.stringify(names), imported.EngineClientError === required.EngineClientError);
    const manager = new imported.TelemetryManager({ enabled: true, prometheusPort: 0 });
    await manager.start().catch((error) => console.log(error.message));`);
  const [first, second] = node('c.mjs').trim().split('\n');
  assert.equal(first, '[] true');
  assert.match(second ?? '', /npm install @opentelemetry/);
});

test('lesson 41: strict TypeScript compiles against it, as a module and as CommonJS', () => {
  const program = `
    import { createEngine, type EngineOptions, type GeneratorChunk } from 'kr-serve';
    export async function main(options: EngineOptions): Promise<number> {
      const engine = await createEngine(options);
      engine.on('model:loaded', ({ modelId }) => modelId.length);
      const handle = await engine.load_model('tiny');
      let n = 0;
      const model = handle.descriptor.id;
      for await (const chunk of engine.createGenerator({ model, prompt: '' })) {
        const known: GeneratorChunk = chunk;
        if (known.type === 'token') n += known.token.length;
      }
      await engine.generate({ model, prompt: '', max_tokens: 4, stop_sequences: ['x'] });
      // @ts-expect-error a method of the ancestor's guides that never was
      engine.close();
      return n;
    }`;
  writeFileSync(join(project, 'd.mts'), program);
  writeFileSync(join(project, 'e.cts'), program);
  run(process.execPath, [join(MODULES, 'typescript', 'bin', 'tsc'), '--strict', '--noEmit',
    '--module', 'nodenext', '--target', 'es2022', '--types', 'node', '--exactOptionalPropertyTypes',
    'd.mts', 'e.cts']);
});
