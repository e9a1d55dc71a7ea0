// Every error that a caller can meet. `code` is what programs look at; messages are for people and
// name the field that is to blame. docs: docs/kr-serve.md, "Errors".
import { isObject } from './objects.js';

export const ENGINE_ERROR_CODES = [
  'ParseError', 'InvalidRequest', 'MethodNotFound', 'InvalidParams', 'ValidationError',
  'InternalError', 'ServerError', 'ModelLoadError', 'GenerationError', 'TokenizerError',
  'GuidanceError', 'ModelNotLoaded', 'RuntimeError', 'TransportError', 'Timeout', 'Cancelled',
  'UnknownError',
] as const;
export type EngineErrorCode = (typeof ENGINE_ERROR_CODES)[number];

export interface EngineErrorObject {
  code: EngineErrorCode;
  message: string;
  details?: unknown;
}

export class EngineClientError extends Error {
  override name = 'EngineError';
  readonly code: EngineErrorCode;
  readonly details?: unknown;

  constructor(code: EngineErrorCode, message: string, details?: unknown, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.code = code;
    if (details !== undefined) this.details = details;
  }

  toObject(): EngineErrorObject {
    const object: EngineErrorObject = { code: this.code, message: this.message };
    if (this.details !== undefined) object.details = this.details;
    return object;
  }
}

export class TimeoutError extends EngineClientError {
  override name = 'TimeoutError';
  readonly method: string;
  readonly timeout: number;
  readonly requestId?: number | string;
  readonly duration?: number;

  constructor(method: string, timeout: number, requestId?: number | string, duration?: number) {
    super('Timeout', `${method} timed out after ${timeout}ms`, { method, timeout });
    this.method = method;
    this.timeout = timeout;
    if (requestId !== undefined) this.requestId = requestId;
    if (duration !== undefined) this.duration = duration;
  }
}

/** An answer of the runtime that is an error, as it came. Callers see it as `cause`. */
export class JsonRpcError extends Error {
  override name = 'JsonRpcError';
  readonly code: number;
  readonly data: unknown;

  constructor(code: number, message: string, data?: unknown) {
    super(message);
    this.code = code;
    this.data = data;
  }

  is(code: number): boolean {
    return this.code === code;
  }
}

export type CircuitState = 'closed' | 'open' | 'half-open';

export class CircuitBreakerOpenError extends Error {
  override name = 'CircuitBreakerOpenError';
  readonly code = -32000;
  readonly retryAfterMs: number;
  readonly state: CircuitState;
  readonly circuit: string;

  constructor(circuit: string, state: CircuitState, retryAfterMs: number) {
    super(`'${circuit}' has failed repeatedly and rests for another ${Math.ceil(retryAfterMs)}ms`);
    this.circuit = circuit;
    this.state = state;
    this.retryAfterMs = retryAfterMs;
  }
}

/** The runtime's program or addon is not there. The name is the one that monitors of the ancestor
 * know; no Python is involved. */
export class RuntimeNotFoundError extends EngineClientError {
  override name = 'PythonEnvironmentError';

  constructor(message: string, cause?: unknown) {
    super('RuntimeError', message, undefined, cause);
  }
}
export { RuntimeNotFoundError as PythonEnvironmentError };

const CODE_OF_NUMBER: Record<number, EngineErrorCode> = {
  [-32700]: 'ParseError', [-32600]: 'InvalidRequest', [-32601]: 'MethodNotFound',
  [-32602]: 'InvalidParams', [-32603]: 'InternalError', [-32000]: 'ServerError',
  [-32001]: 'ModelLoadError', [-32002]: 'GenerationError', [-32003]: 'TokenizerError',
  [-32004]: 'GuidanceError', [-32005]: 'ModelNotLoaded', [-32099]: 'RuntimeError',
};

/** What the runtime says of an error: in answers, in items of batches and in stream events. */
export interface WireError {
  code: number;
  message: string;
  data?: {
    type?: string; kr_status?: number; param?: string | null; model_id?: string;
  } | undefined;
}

function codeOf(number: number, type: unknown): EngineErrorCode {
  if ((ENGINE_ERROR_CODES as readonly unknown[]).includes(type)) return type as EngineErrorCode;
  return CODE_OF_NUMBER[number] ?? 'UnknownError';
}

function isWireError(value: unknown): value is WireError {
  return isObject(value) && typeof value['code'] === 'number'
    && typeof value['message'] === 'string';
}

/** What the runtime said has not the form that it should have. */
export function malformed(method: string, cause?: unknown): EngineClientError {
  return new EngineClientError('TransportError',
    `${method}: what the runtime said has not the form that was agreed on`, { method }, cause);
}

/** `field` is the blamed parameter in the wire's spelling; `data` all that the runtime said. Takes
 * anything: what is no error of the wire is malformed. */
export function errorOfWire(wire: unknown, method: string): EngineClientError {
  if (!isWireError(wire)) return malformed(method, wire);
  const data = isObject(wire.data) ? wire.data : {};
  const details: Record<string, unknown> = { rpcCode: wire.code, data, method };
  if (typeof data['param'] === 'string') details['field'] = data['param'];
  if (typeof data['model_id'] === 'string') details['modelId'] = data['model_id'];
  const cause = new JsonRpcError(wire.code, wire.message, wire.data);
  return new EngineClientError(codeOf(wire.code, data['type']), wire.message, details, cause);
}

export function toEngineError(thrown: unknown): EngineClientError {
  if (thrown instanceof EngineClientError) return thrown;
  if (thrown instanceof CircuitBreakerOpenError) {
    return new EngineClientError('TransportError', thrown.message, {
      retryAfterMs: thrown.retryAfterMs, circuitState: thrown.state, circuit: thrown.circuit,
    }, thrown);
  }
  const message = thrown instanceof Error ? thrown.message : String(thrown);
  return new EngineClientError('UnknownError', message, undefined, thrown);
}

export function cancelled(what: string, reason?: unknown): EngineClientError {
  return new EngineClientError('Cancelled', `${what} was cancelled`, undefined, reason);
}

const RETRYABLE: ReadonlySet<EngineErrorCode> = new Set<EngineErrorCode>([
  'InternalError', 'ServerError', 'RuntimeError', 'TransportError', 'Timeout',
]);

/** Whether asking again may help. ModelLoadError, GenerationError and UnknownError depend on their
 * cause and are not counted. */
export function isRetryable(error: unknown): boolean {
  return error instanceof EngineClientError && RETRYABLE.has(error.code);
}
