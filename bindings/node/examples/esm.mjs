// node esm.mjs [MODEL]: streams an answer.
import { createEngine } from 'kr-serve';

const model = process.argv[2] ?? 'smollm2';
const engine = await createEngine();
try {
  await engine.loadModel(model);
  const stream = engine.createGenerator({ model, prompt: 'The sky is', maxTokens: 16, temperature: 0 });
  for await (const chunk of stream) {
    if (chunk.type === 'token') process.stdout.write(chunk.token);
    if (chunk.type === 'metadata') console.log(`\n${chunk.stats.tokensGenerated} tokens`);
    if (chunk.type === 'error') throw new Error(chunk.error.message);
  }
  const { tokens } = await engine.tokenize({ model, text: 'Hello world' });
  console.log(`Hello world: ${tokens.length} ids`);
} finally {
  await engine.dispose();
}
