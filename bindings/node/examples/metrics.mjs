// node metrics.mjs [MODEL]: what Prometheus would read. Needs the packages of OpenTelemetry:
// npm install @opentelemetry/api @opentelemetry/sdk-metrics @opentelemetry/resources \
//   @opentelemetry/exporter-prometheus
import { createEngine, createTelemetryBridge } from 'kr-serve';

const model = process.argv[2] ?? 'smollm2';
const { hooks, manager } = createTelemetryBridge({ enabled: true, prometheusPort: 0 });
await manager.start();
const engine = await createEngine({ telemetry: { enabled: true, hooks } });
try {
  await engine.loadModel(model);
  await engine.generate({ model, prompt: 'The sky is', maxTokens: 8, temperature: 0, ignoreEos: true });
  const page = await fetch(`http://127.0.0.1:${manager.port}/metrics`);
  for (const line of (await page.text()).split('\n')) {
    if (line.startsWith('kr_serve_tokens_generated_total')) console.log(line);
  }
  const report = await engine.getTelemetryReport(); // of the runtime itself
  console.log(`p95 of a generation: ${report.generation.latencyMs.p95} ms`);
} finally {
  await engine.dispose();
  await manager.shutdown();
}
