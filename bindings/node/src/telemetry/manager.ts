// Owns OpenTelemetry's meter provider and the page that Prometheus reads. The packages of
// OpenTelemetry are optional: they are looked for when a manager starts, never before.

import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';

import { createMetrics, type MeterLike, type TelemetryMetrics } from './metrics.js';

export interface TelemetryConfig {
  /** false: start() does nothing. */
  enabled: boolean;
  serviceName?: string;
  /** 0: any free one, see `port`. */
  prometheusPort?: number;
  prometheusHost?: string;
  /** A PushMetricExporter of OpenTelemetry (OTLP, console), asked at this interval. */
  exporter?: object;
  exportIntervalMs?: number;
  logger?: { info(message: string): void };
}

const NAME = /^[A-Za-z0-9_-]{1,100}$/;
const PACKAGES = '@opentelemetry/api @opentelemetry/sdk-metrics @opentelemetry/resources '
  + '@opentelemetry/exporter-prometheus';

interface Provider {
  shutdown(): Promise<void>;
  forceFlush(): Promise<void>;
}

function isWithin(value: number, min: number, max: number): boolean {
  return Number.isInteger(value) && value >= min && value <= max;
}

function checked(config: TelemetryConfig) {
  const {
    serviceName = 'kr-serve', prometheusPort = 9464, exportIntervalMs = 60_000,
    prometheusHost = '127.0.0.1',
  } = config;
  if (!NAME.test(serviceName)) {
    throw new RangeError("'serviceName' must be 1 to 100 of A-Z a-z 0-9 _ -");
  }
  if (!isWithin(prometheusPort, 0, 65_535)) {
    throw new RangeError("'prometheusPort' must be a whole number from 0 to 65535");
  }
  if (!isWithin(exportIntervalMs, 1000, 600_000)) {
    throw new RangeError("'exportIntervalMs' must be a whole number from 1000 to 600000");
  }
  return { ...config, serviceName, prometheusPort, prometheusHost, exportIntervalMs };
}

async function loadPackages() {
  try {
    const [sdk, prometheus, resources] = await Promise.all([
      import('@opentelemetry/sdk-metrics'), import('@opentelemetry/exporter-prometheus'),
      import('@opentelemetry/resources'),
    ]);
    return { sdk, prometheus, resources };
  } catch (cause) {
    throw new Error(`telemetry needs packages that are not there: npm install ${PACKAGES}`,
      { cause });
  }
}

let current: TelemetryManager | undefined;

/** The metrics of the manager that started last and runs; null of none. */
export function getMetrics(): TelemetryMetrics | null {
  return current?.metrics ?? null;
}

export class TelemetryManager {
  private readonly config: ReturnType<typeof checked>;
  private starting: Promise<void> | undefined;
  private provider: Provider | undefined;
  private server: Server | undefined;
  private made: TelemetryMetrics | undefined;

  constructor(config: TelemetryConfig) {
    this.config = checked(config);
  }

  get isStarted(): boolean {
    return this.made !== undefined;
  }

  /** undefined while the manager does not run. */
  get metrics(): TelemetryMetrics | undefined {
    return this.made;
  }

  /** Of the page; undefined while the manager does not run. */
  get port(): number | undefined {
    return (this.server?.address() as AddressInfo | null | undefined)?.port;
  }

  start(): Promise<void> {
    if (!this.config.enabled) return Promise.resolve();
    this.starting ??= this.begin().catch((error: unknown) => {
      this.starting = undefined;
      throw error;
    });
    return this.starting;
  }

  async shutdown(): Promise<void> {
    await this.starting?.catch(() => {});
    const { provider, server } = this;
    this.starting = this.provider = this.server = this.made = undefined;
    if (current === this) current = undefined;
    if (server) {
      server.closeAllConnections?.();
      await new Promise((resolve) => server.close(resolve));
    }
    await provider?.shutdown();
  }

  private async begin(): Promise<void> {
    const { sdk, prometheus, resources } = await loadPackages();
    const { serviceName, exporter, exportIntervalMs, logger } = this.config;
    const page = new prometheus.PrometheusExporter({
      preventServerStart: true, withoutScopeInfo: true,
    });
    const { createServer } = await import('node:http'); // most programs never need it
    const server = createServer((request, response) => {
      const path = request.url?.split('?')[0];
      if (request.method === 'GET' && path === '/metrics') {
        page.getMetricsRequestHandler(request, response);
      } else {
        response.writeHead(path === '/metrics' ? 405 : 404).end();
      }
    });
    await this.listen(server);
    const readers: InstanceType<typeof sdk.MetricReader>[] = [page];
    if (exporter) {
      readers.push(new sdk.PeriodicExportingMetricReader({
        exporter: exporter as InstanceType<typeof sdk.InMemoryMetricExporter>,
        exportIntervalMillis: exportIntervalMs,
      }));
    }
    const provider = new sdk.MeterProvider({
      readers, resource: resources.resourceFromAttributes({ 'service.name': serviceName }),
    });
    this.provider = provider;
    this.server = server;
    this.made = createMetrics(provider.getMeter('kr-serve') as MeterLike);
    current = this;
    logger?.info(`metrics on http://${this.config.prometheusHost}:${this.port}/metrics`);
  }

  private listen(server: Server): Promise<void> {
    const { prometheusPort, prometheusHost } = this.config;
    return new Promise((resolve, reject) => {
      server.once('error', reject);
      server.listen(prometheusPort, prometheusHost, () => {
        server.off('error', reject);
        server.unref(); // a page keeps no program alive
        resolve();
      });
    });
  }
}
