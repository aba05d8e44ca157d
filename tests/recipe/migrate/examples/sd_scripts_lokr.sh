#!/bin/bash
# LyCORIS on SD1.5 with Prodigy
export MODEL="runwayml/stable-diffusion-v1-5"
OUT=$HOME/loras

accelerate launch --num_cpu_threads_per_process 1 --num_processes=2 --mixed_precision bf16 train_network.py \
  --pretrained_model_name_or_path="$MODEL" \
  --dataset_config="sd_scripts_dataset.toml" \
  --output_dir="$OUT" --output_name=lokr_test \
  --network_module=lycoris.kohya \
  --network_dim=10000 --network_alpha=1 \
  --network_args "algo=lokr" "factor=8" "preset=attn-mlp" "full_matrix=True" \
  --optimizer_type="Prodigy" \
  --optimizer_args "decouple=True" "weight_decay=0.01" "d_coef=2" "use_bias_correction=True" \
  --learning_rate=1.0 --text_encoder_lr=1.0 --unet_lr=1.0 \
  --lr_scheduler="cosine" \
  --max_train_steps=2000 \
  --debiased_estimation_loss \
  --min_timestep=100 --max_timestep=900 \
  --ip_noise_gamma=0.1 \
  --loss_type="huber" --huber_c=0.05 --huber_schedule="snr" \
  --scale_weight_norms=1 \
  --sdpa --save_every_n_steps=500 --some_new_option=3
