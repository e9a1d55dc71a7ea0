// Between the wire's names and the surface's, where the two differ by spelling only.
import type {
  CompatibilityReport, CountTokensRequest, DraftSide, EmbedRequest, EmbedResponse, LatencySummary,
  RuntimeInfo, TelemetryReport, TokenizeRequest, TokenizeResponse,
} from './types.js';

export interface WireInfo {
  version: string;
  protocol: string;
  protocol_version: number;
  pid: number;
  isa: string;
  capabilities: string[];
  limits: Record<string, number>;
  memory?: { rss: number; vms: number };
}

export function infoOfWire(wire: WireInfo, transport: 'child' | 'in-process'): RuntimeInfo {
  return {
    version: wire.version, protocol: wire.protocol, protocolVersion: wire.protocol_version,
    capabilities: wire.capabilities, isa: wire.isa, limits: wire.limits, transport, pid: wire.pid,
    mlxSupported: false, ...(wire.memory && { memory: wire.memory }),
  };
}

export interface WireTokens {
  tokens: number[];
  token_strings?: string[];
}

export function tokensOfWire(wire: WireTokens): TokenizeResponse {
  const response: TokenizeResponse = { tokens: wire.tokens };
  if (wire.token_strings !== undefined) response.tokenStrings = wire.token_strings;
  return response;
}

export function tokenizeToWire(request: TokenizeRequest): Record<string, unknown> {
  return {
    model_id: request.model, text: request.text,
    ...(request.addBos !== undefined && { add_special_tokens: request.addBos }),
  };
}

export function countToWire(request: CountTokensRequest): Record<string, unknown> {
  return {
    model_id: request.model,
    ...(request.text !== undefined ? { text: request.text } : { messages: request.messages }),
    ...(request.addBos !== undefined && { add_special_tokens: request.addBos }),
  };
}

export function embedToWire(request: EmbedRequest): Record<string, unknown> {
  return {
    model_id: request.model, input: request.input,
    ...(request.pooling !== undefined && { pooling: request.pooling }),
    ...(request.normalize !== undefined && { normalize: request.normalize }),
    ...(request.timeoutMs !== undefined && { timeout_ms: request.timeoutMs }),
  };
}

export interface WireEmbeddings {
  embeddings: number[][];
  dimensions: number;
  prompt_tokens: number;
}

export const embeddingsOfWire = (wire: WireEmbeddings): EmbedResponse => ({
  embeddings: wire.embeddings, dimensions: wire.dimensions, promptTokens: wire.prompt_tokens,
});

interface WireSide {
  id: string;
  vocab_size: number | null;
  parameter_count: number;
  architecture: string;
}

export interface WireReport {
  compatible: boolean;
  errors: string[];
  warnings: string[];
  details: {
    primary_model: WireSide;
    draft_model: WireSide;
    performance_estimate: {
      expected_speedup: string; size_ratio: string; recommendation: string;
    };
  };
}

const side = (wire: WireSide): DraftSide => ({
  id: wire.id, vocabSize: wire.vocab_size, parameterCount: wire.parameter_count,
  architecture: wire.architecture,
});

export function reportOfWire(wire: WireReport): CompatibilityReport {
  const { primary_model, draft_model, performance_estimate } = wire.details;
  return {
    compatible: wire.compatible, errors: wire.errors, warnings: wire.warnings,
    details: {
      primaryModel: side(primary_model), draftModel: side(draft_model),
      performanceEstimate: {
        expectedSpeedup: performance_estimate.expected_speedup,
        sizeRatio: performance_estimate.size_ratio,
        recommendation: performance_estimate.recommendation,
      },
    },
  };
}

export interface WireTelemetry {
  enabled: boolean;
  sampling_rate: number;
  generation: {
    calls: number; total_tokens: number; avg_tokens_per_call: number;
    latency_ms: LatencySummary; throughput: { tokens_per_second: number };
  };
  tokenization: { calls: number; latency_ms: LatencySummary };
  errors: { total: number; timeouts: number; error_rate: number };
  native_optimizations: Record<string, unknown>;
  engine: Record<string, unknown>;
}

export function telemetryOfWire(wire: WireTelemetry): TelemetryReport {
  const { generation, tokenization, errors } = wire;
  return {
    enabled: wire.enabled, samplingRate: wire.sampling_rate,
    generation: {
      calls: generation.calls, totalTokens: generation.total_tokens,
      avgTokensPerCall: generation.avg_tokens_per_call, latencyMs: generation.latency_ms,
      throughput: { tokensPerSecond: generation.throughput.tokens_per_second },
    },
    tokenization: { calls: tokenization.calls, latencyMs: tokenization.latency_ms },
    errors: { total: errors.total, timeouts: errors.timeouts, errorRate: errors.error_rate },
    nativeOptimizations: wire.native_optimizations, engine: wire.engine,
  };
}
