// tsc typescript.ts, then node typescript.js [MODEL]: what the types say.
import { EngineClientError, createEngine } from 'kr-serve';
import type { Engine, GeneratorParams, TokenizeResponse } from 'kr-serve';

const model: string = process.argv[2] ?? 'smollm2';

async function answer(engine: Engine, prompt: string): Promise<string> {
  const params: GeneratorParams = { model, prompt, maxTokens: 8, temperature: 0, ignoreEos: true };
  let text = '';
  for await (const chunk of engine.createGenerator(params, { timeoutMs: 60_000 })) {
    switch (chunk.type) {
      case 'token':
        text += chunk.token;
        break;
      case 'metadata':
        console.log(`${chunk.stats.tokensGenerated} tokens`);
        break;
      case 'error':
        throw new Error(`${chunk.error.code}: ${chunk.error.message}`);
    }
  }
  return text;
}

async function main(): Promise<void> {
  const engine: Engine = await createEngine();
  try {
    await engine.loadModel({ model });
    console.log(JSON.stringify(await answer(engine, 'Once upon a time')));
    // Issued together, sent together.
    const all: TokenizeResponse[] = await Promise.all(
      ['one', 'two', 'three'].map((text) => engine.tokenize({ model, text })));
    console.log(`${all.length} texts`);
    try {
      await engine.generate({ model: 'not-there', prompt: 'x' });
    } catch (error) {
      if (!(error instanceof EngineClientError)) throw error;
      console.log(error.code);
    }
  } finally {
    await engine.dispose();
  }
}

main().catch((error: unknown) => {
  console.error(error);
  process.exitCode = 1;
});
