// What to do about a run that failed, by the cause that its details give.

const ADVICE: [RegExp, string][] = [
  [/out of memory|for want of memory|SIGKILL/i,
    "Start it again with a smaller batch_size, or keep the batch and set gradient_cache_size (such as 16) or gradient_checkpointing. A shorter model_options.max_length helps too."],
  [/has collapsed/i,
    "Start it again with a lower learning_rate (a fifth of it), or with SupConLoss at a temperature of 0.05 and no miner."],
  [/nothing was learnt/i,
    "The loss had nothing left to move. Start it again with SupConLoss, with a larger margin, or without the miner."],
  [/NaN|not finite|infinite/i, "Start it again with a lower learning_rate, and with precision fp32."],
  [/ModelNotFound|ConnectTimeout|couldn't connect|huggingface|\bhub\b/i,
    "Check the model's name, or put the model into the workspace's folder models/ on the server."],
  [/ArtifactNotFound|CorruptedArtifact/i,
    "The run that this one goes on from is gone or damaged: choose another model_artifact, or leave it out."],
  [/DataError|label|no text/i, "Check the data: New run shows what is in it before it starts."],
  [/ConfigError|unexpected keyword|TypeError/i, "Correct the setting that is named and start it again."],
  [/worker\.txt|exit code/i,
    "What the process printed last is in worker.txt in the run's folder on the server."],
  [/interrupted \d+ times|given up/i,
    "Its process ended again and again. See whether the machine has enough memory, then start it again."],
  [/No space|quota|disk|volume|damaged/i,
    "Make room on the server's volume: `finetuner gc` shows what can go."],
  [/CUDA|cuDNN|NCCL/i, "See that the GPU is there and free, or start it with device cpu."],
];

/** Return what helps against a cause, for people. */
export function adviceFor(details: string): string {
  const found = ADVICE.find(([pattern]) => pattern.test(details));
  return found?.[1] ?? "The log's last lines say where it stopped. Start it again from New run once that is mended.";
}
