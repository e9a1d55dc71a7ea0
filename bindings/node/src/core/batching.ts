// Which calls travel together: one queue for tokenize, one for check_draft. Each item of a batch
// has its own outcome, with its own error code.
import { TimeoutError, cancelled, errorOfWire, malformed } from '../errors.js';
import type { Config } from '../config.js';
import { isObject } from '../objects.js';
import { isAnswer } from '../rpc/answers.js';
import type { RpcClient } from '../rpc/client.js';
import { BatchQueue, BatchQueues } from '../services/index.js';
import type { BatchDispatch, BatchOutcome } from '../services/index.js';
import type { TokenizeRequest } from '../types.js';
import { tokenizeToWire } from '../wire.js';
import type { WireReport, WireTokens } from '../wire.js';

export interface DraftPair {
  primaryId: string;
  draftId: string;
}

export type Queues = BatchQueues<
  BatchQueue<TokenizeRequest, WireTokens>, BatchQueue<DraftPair, WireReport>>;

const pairToWire = (pair: DraftPair): Record<string, unknown> =>
  ({ primary_id: pair.primaryId, draft_id: pair.draftId });

function outcomeOf<Result>(method: string, item: unknown): BatchOutcome<Result> {
  if (!isObject(item)) return { ok: false, error: malformed(method) };
  if (item['success'] !== true) return { ok: false, error: errorOfWire(item['error'], method) };
  return isAnswer(method, item['result']) ? { ok: true, value: item['result'] as Result }
    : { ok: false, error: malformed(method) };
}

/** A model of its own does not open the circuit of the others. */
function makeQueue<Request, Result>(client: RpcClient, config: Config, method: string,
  toWire: (request: Request) => Record<string, unknown>,
  modelOf: (request: Request) => string, sizeOf: (request: Request) => number,
  onDispatched: (dispatch: BatchDispatch) => void): BatchQueue<Request, Result> {
  const section = config.batch_queue;
  return new BatchQueue<Request, Result>({
    name: method,
    sendBatch: async (requests) => {
      const { results } = await client.call<{ results: unknown[] }>(`batch_${method}`,
        { requests: requests.map(toWire) });
      if (results.length !== requests.length) throw malformed(`batch_${method}`);
      return results.map((item) => outcomeOf<Result>(method, item));
    },
    sendOne: (request, signal) => client.call<Result>(method, toWire(request),
      { model: modelOf(request), signal }),
    timeoutError: (timeoutMs) => new TimeoutError(method, timeoutMs),
    cancelledError: (reason) => cancelled(method, reason),
    sizeOf, onDispatched,
    enabled: section.enabled,
    maxBatchSize: section.max_batch_size,
    batchSizeLimit: 64,
    flushIntervalMs: section.flush_interval_ms,
    adaptiveSizing: section.adaptive_sizing,
    targetBatchTimeMs: section.target_batch_time_ms,
    priorityQueue: section.priority_queue,
    timeoutMs: config.json_rpc.default_timeout_ms,
  });
}

export function makeQueues(client: RpcClient, config: Config,
  onDispatched: (dispatch: BatchDispatch) => void): Queues {
  return new BatchQueues(
    makeQueue<TokenizeRequest, WireTokens>(client, config, 'tokenize', tokenizeToWire,
      (request) => request.model, (request) => request.text.length, onDispatched),
    makeQueue<DraftPair, WireReport>(client, config, 'check_draft', pairToWire,
      (pair) => pair.primaryId, () => 64, onDispatched),
  );
}
