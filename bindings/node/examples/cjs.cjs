// node cjs.cjs [MODEL]: a whole text, by the helpers.
const { generateText, withEngine } = require('kr-serve');

const model = process.argv[2] ?? 'smollm2';

withEngine(async (engine) => {
  await engine.load_model({ model }); // each method has its snake_case name, too
  const text = await generateText(engine, { model, prompt: 'The sea is', maxTokens: 16, temperature: 0 });
  console.log(JSON.stringify(text));
}).catch((error) => {
  console.error(`${error.code ?? error.name}: ${error.message}`);
  process.exitCode = 1;
});
