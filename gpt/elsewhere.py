"""What other tools call the options, for whoever knows those: nanoGPT, litgpt, nanochat, Hugging Face's Trainer and
`generate`."""

from __future__ import annotations

OURS = {
    "run_dir": "out_dir output_dir",
    "output": "out_dir output_dir out_file",
    "resume": "resume_from_checkpoint",
    "init_from": "model_name_or_path model_name checkpoint_dir pretrained",
    "checkpoint": "model_name_or_path model_name checkpoint_dir out_dir model ckpt",
    "data": "dataset dataset_name",
    "data.files": "train_file train_files data_path data_dir input_file",
    "data.val_files": "validation_file val_file eval_file",
    "model.n_layer": "num_hidden_layers num_layers n_layers depth",
    "model.n_head": "num_attention_heads num_heads n_heads",
    "model.n_kv_head": "num_key_value_heads n_query_groups n_kv_heads",
    "model.n_embd": "hidden_size d_model embed_dim dim",
    "model.n_hidden": "intermediate_size ffn_dim",
    "model.context_length": "block_size max_seq_length max_seq_len seq_len sequence_length n_ctx",
    "model.tie_embeddings": "tie_word_embeddings",
    "lora.rank": "lora_r",
    "lora.targets": "target_modules",
    "optimizer": "optim",
    "optimizer.lr": "learning_rate max_lr",
    "optimizer.beta1": "adam_beta1",
    "optimizer.beta2": "adam_beta2",
    "optimizer.eps": "adam_epsilon",
    "schedule": "lr_scheduler_type decay_lr lr_schedule",
    "schedule.warmup_steps": "warmup_iters lr_warmup_steps warmup_ratio",
    "schedule.final_lr_ratio": "min_lr final_lr_frac",
    "train.max_steps": "max_iters num_iterations num_steps",
    "train.max_epochs": "num_train_epochs num_epochs epochs",
    "train.batch_size": "per_device_train_batch_size micro_batch_size device_batch_size",
    "train.grad_accum_steps": "gradient_accumulation_steps gradient_accumulation_iters",
    "train.global_batch_size": "total_batch_size",
    "train.grad_clip": "max_grad_norm max_norm clip_grad",
    "train.eval_every": "eval_interval eval_steps eval_strategy evaluation_strategy",
    "train.eval_tokens": "eval_iters max_eval_samples",
    "train.eval_batch_size": "per_device_eval_batch_size",
    "train.checkpoint_every": "save_steps save_interval always_save_checkpoint save_strategy",
    "train.keep_checkpoints": "save_total_limit",
    "train.early_stop_patience": "early_stopping_patience",
    "train.log_every": "log_interval logging_steps",
    "train.precision": "dtype fp16 bf16 torch_dtype amp",
    "train.device": "no_cuda use_cpu",
    "train.compile": "torch_compile",
    "train.activation_checkpointing": "gradient_checkpointing",
    "wandb.mode": "wandb_log report_to logger_name use_wandb",
    "precision": "dtype torch_dtype fp16 bf16",
    "prompt": "start input_text text",
    "prompt_file": "prompts_file",
    "max_new_tokens": "max_length max_tokens num_tokens",
    "num_samples": "num_return_sequences n_samples",
    "temperature": "do_sample temp",
    "repetition_penalty": "repeat_penalty",
    "stop": "stop_strings stop_sequences",
}
MEANINGS = [(theirs, ours) for ours, names in OURS.items() for theirs in names.split()]


def translated(name: str, known: list[str]) -> list[str]:
    """The options among `known` that another tool calls by this name, dashes and all."""
    last = name.rpartition(".")[2].replace("-", "_").lower()
    return [ours for theirs, ours in MEANINGS if theirs == last and ours in known]
