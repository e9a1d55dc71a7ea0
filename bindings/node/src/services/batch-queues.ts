// The two queues of the engine and their figures under the names of its public API.

import type { BatchPerformance, BatchQueue, BatchQueueStats } from './batch-queue.js';

export interface BatchStats {
  tokenizeBatches: number;
  tokenizeRequests: number;
  tokenizeFallbacks: number;
  tokenizeQueueSize: number;
  tokenizeEfficiency: number;
  checkDraftBatches: number;
  checkDraftRequests: number;
  checkDraftFallbacks: number;
  checkDraftQueueSize: number;
  checkDraftEfficiency: number;
  /** Of the tokenize queue, which is the one that fills. */
  currentMaxBatchSize: number;
  initialMaxBatchSize: number;
  adaptiveSizingEnabled: boolean;
  tokenizePerformance: BatchPerformance;
  checkDraftPerformance: BatchPerformance;
}

type Queue = Pick<BatchQueue<never, unknown>, 'stats' | 'resetStats' | 'flush' | 'cleanup'>;

export class BatchQueues<Tokenize extends Queue, CheckDraft extends Queue> {
  constructor(readonly tokenize: Tokenize, readonly checkDraft: CheckDraft) {}

  stats(): BatchStats {
    const tokenize: BatchQueueStats = this.tokenize.stats();
    const checkDraft: BatchQueueStats = this.checkDraft.stats();
    return {
      tokenizeBatches: tokenize.batches,
      tokenizeRequests: tokenize.requests,
      tokenizeFallbacks: tokenize.fallbacks,
      tokenizeQueueSize: tokenize.queueSize,
      tokenizeEfficiency: tokenize.efficiency,
      checkDraftBatches: checkDraft.batches,
      checkDraftRequests: checkDraft.requests,
      checkDraftFallbacks: checkDraft.fallbacks,
      checkDraftQueueSize: checkDraft.queueSize,
      checkDraftEfficiency: checkDraft.efficiency,
      currentMaxBatchSize: tokenize.currentMaxBatchSize,
      initialMaxBatchSize: tokenize.initialMaxBatchSize,
      adaptiveSizingEnabled: tokenize.adaptiveSizingEnabled,
      tokenizePerformance: tokenize.performance,
      checkDraftPerformance: checkDraft.performance,
    };
  }

  resetStats(): void {
    this.tokenize.resetStats();
    this.checkDraft.resetStats();
  }

  async flush(): Promise<void> {
    await Promise.all([this.tokenize.flush(), this.checkDraft.flush()]);
  }

  cleanup(error: Error): void {
    this.tokenize.cleanup(error);
    this.checkDraft.cleanup(error);
  }
}
