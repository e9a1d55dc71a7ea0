// The services of the engine: small classes that get what they need as functions.

export { BatchQueue } from './batch-queue.js';
export type {
  BatchDispatch, BatchItemOptions, BatchOutcome, BatchPerformance, BatchPriority,
  BatchQueueOptions, BatchQueueStats,
} from './batch-queue.js';
export { BatchQueues } from './batch-queues.js';
export type { BatchStats } from './batch-queues.js';
export { Coalescer } from './coalescer.js';
export type { CoalescerOptions, CoalescerStats } from './coalescer.js';
export { fingerprint, isDeterministic } from './fingerprint.js';
export { GenerationStatsCollector } from './generation-stats-collector.js';
export type {
  CollectedStats, GenerationStatsCollectorOptions,
} from './generation-stats-collector.js';
export { QOS_POLICIES, QosMonitor } from './qos-monitor.js';
export type {
  QosAction, QosMetric, QosMonitorOptions, QosPolicy, QosReport, QosSample, QosViolation,
} from './qos-monitor.js';
export { ResponseCache } from './response-cache.js';
export type { ResponseCacheOptions, ResponseCacheStats } from './response-cache.js';
